"""What `GET /v1/experts` answers, made up."""

from __future__ import annotations

from typing import Any

QUANTILES = {"p50": 0.05, "p95": 0.5, "p99": 12.0}


def model(layers: int = 2, experts: int = 4, **more: Any) -> dict[str, Any]:
    """A model whose expert 1 of layer 0 has all of its layer's tokens, the others their even share."""
    even = [1 / experts] * experts
    shares = [[0.0, 1.0, *[0.0] * (experts - 2)]] + [even] * (layers - 1)
    return {
        "shape": {"layers": layers, "experts": experts, "top_k": 2},
        "tokens": [1234.0] * layers,
        "tokens_per_s": 12.3,
        "imbalance": [float(experts)] + [1.0] * (layers - 1),
        "entropy": [0.0] + [1.0] * (layers - 1),
        "shares": shares,
        "hot": [],
        "traffic": {},
        "replicas": [{"id": "ingress#abc123", "tokens": 777}],
        "tail": None,
        **more,
    }


def hot(layer: int = 0, expert: int = 1) -> dict[str, Any]:
    traffic = [{"name": "code", "share": 0.75}, {"name": "", "share": 0.25}]
    return {"layer": layer, "expert": expert, "share": 0.5, "times": 2.0, "age_s": 70.0, "traffic": traffic}


def tail() -> dict[str, Any]:
    row = {"share": 0.96, "distinct": 12.0, "seconds": QUANTILES, "seconds_per_token": QUANTILES, "rare": False}
    wide = {**row, "share": 0.04, "distinct": 99.0, "seconds_per_token": None, "rare": True}
    none = {**row, "share": 0.0, "distinct": 0.0, "seconds": None, "seconds_per_token": None}
    return {
        "requests": 50,
        "rows": [
            {"name": "le_0.25", "above": 0.0, "to": 0.25, "requests": 48, **row},
            {"name": "le_0.5", "above": 0.25, "to": 0.5, "requests": 0, **none},
            {"name": "le_1", "above": 0.9, "to": 1.0, "requests": 2, **wide},
        ],
    }


def page(models: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "half_life_s": 30.0,
        "hot": 1.5,
        "cool": 1.2,
        "dwell_s": 5.0,
        "min_tokens": 200,
        "log_tokens": 512,
        "models": {"moe": model()} if models is None else models,
        "silent": {},
        **more,
    }
