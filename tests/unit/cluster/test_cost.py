from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.load import parse_config
from cluster.cost import EngineUse, RequestCost, cost_of, price_of

ROOT = Path(__file__).parents[3]
CONFIG = parse_config(
    """
models:
  own: {kind: dense, roles: [strong], source: 'embedded:dense', price_per_million_tokens: 7, engine: {type: simulated}}
  hosted:
    kind: external
    roles: [fast]
    price_per_million_tokens: 2.5
    upstream: {base_url: 'https://api.example.com/v1', model: hosted}
routing: {code_role: strong}
""",
    "cost.yaml",
)


def test_only_what_is_hosted_elsewhere_is_paid_by_the_token() -> None:
    assert (price_of(CONFIG, "own"), price_of(CONFIG, "hosted"), price_of(CONFIG, "gone")) == (0.0, 2.5, 0.0)


def test_calls_of_one_model_are_added_up() -> None:
    cost = cost_of(
        CONFIG,
        [
            EngineUse("hosted", 1_000_000, 600_000, 10, 2.0, 2),
            EngineUse("own", 10, 5, 0, 0.5),
            EngineUse("hosted", 400_000, 0, 0, 1.0, estimated=True),
        ],
    )
    hosted, own = cost.models
    assert (hosted.model, hosted.calls, hosted.prompt_tokens, hosted.completion_tokens) == (
        "hosted",
        3,
        1_400_000,
        600_000,
    )
    assert hosted.cost == pytest.approx(5.0)
    assert hosted.estimated and not own.estimated and cost.estimated
    assert (own.cost, own.engine_seconds) == (0.0, 0.5)
    assert (cost.cost, cost.engine_seconds, cost.cached_tokens) == (pytest.approx(5.0), 3.5, 10)
    assert (cost.prompt_tokens, cost.completion_tokens) == (1_400_010, 600_005)


def test_nothing_costs_nothing() -> None:
    assert cost_of(CONFIG, []) == RequestCost()
    assert (RequestCost().cost, RequestCost().estimated) == (0, False)
