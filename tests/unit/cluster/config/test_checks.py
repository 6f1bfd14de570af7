from typing import Any

import pytest
import yaml

from cluster.config.load import parse_config
from cluster.config.mistakes import ConfigError

QUALITY = {"agreement": 0.99, "kl": 0.01, "consistency": 0.8}


def base() -> dict[str, Any]:
    return {
        "models": {
            "dense": {
                "kind": "dense",
                "roles": ["strong", "fast", "fluency"],
                "source": "embedded:dense",
                "engine": {"max_model_len": 2048},
            },
            "moe": {"kind": "sparse", "roles": ["code"], "source": "hf:org/name@main"},
            "encoder": {"kind": "encoder", "roles": ["embedding"], "source": "embedded:encoder"},
            "hosted": {
                "kind": "external",
                "roles": ["big"],
                "upstream": {"base_url": "https://example.com/v1", "model": "m"},
            },
        },
        "contracts": {
            "strong": {"max_prompt_tokens": 1024, "max_completion_tokens": 512, "fallback": ["code"]},
            "code": {"max_prompt_tokens": 1024, "max_completion_tokens": 512, "fallback": ["big"]},
        },
    }


def paths(config: dict[str, Any]) -> set[str]:
    try:
        parse_config(yaml.safe_dump(config), "test")
    except ConfigError as error:
        return {mistake.path for mistake in error.mistakes}
    return set()


def test_the_base_has_no_mistakes() -> None:
    assert paths(base()) == set()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("models.auto", {"kind": "dense", "roles": ["x"], "source": "embedded:a"}, "models.auto"),
        ("models.strong", {"kind": "dense", "roles": ["x"], "source": "embedded:a"}, "models.strong"),
        ("models.verifier", {"kind": "dense", "roles": ["x"], "source": "embedded:a"}, "models.verifier"),
        ("models.dense.source", None, "models.dense.source"),
        ("models.dense.upstream", {"base_url": "https://e.com", "model": "m"}, "models.dense.upstream"),
        ("models.hosted.source", "embedded:dense", "models.hosted.source"),
        ("models.hosted.upstream", None, "models.hosted.upstream"),
        ("models.hosted.upstream.base_url", "http://example.com/v1", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "https://u:p@example.com/v1", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "ftp://example.com/v1", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "https://example.com:99999/v1", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "https://example.com/v1?a=b", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "https://exa mple.com/v1", "models.hosted.upstream.base_url"),
        ("models.hosted.upstream.base_url", "https://", "models.hosted.upstream.base_url"),
        ("models.dense.roles", ["strong", "fast", "fluency", "fast"], "models.dense.roles.3"),
        ("models.dense.roles", ["strong", "fast", "fluency", "embedding"], "models.dense.roles.3"),
        ("models.encoder.roles", ["embedding", "verifier"], "models.encoder.roles.1"),
        ("models.dense.engine.type", "encoder", "models.dense.engine.type"),
        ("models.encoder.engine", {"type": "vllm"}, "models.encoder.engine.type"),
        ("models.encoder.engine", {"tool_parser": "hermes"}, "models.encoder.engine.tool_parser"),
        ("models.hosted.engine", {"kv_cache_bytes": 2**30}, "models.hosted.engine.kv_cache_bytes"),
        ("models.dense.engine.simulated", {"seed": 3}, "models.dense.engine.simulated"),
        (
            "models.dense.engine",
            {"type": "simulated", "simulated": {"experts": {}}},
            "models.dense.engine.simulated.experts",
        ),
        (
            "models.moe.engine",
            {"type": "simulated", "simulated": {"experts": {"experts": 4, "top_k": 5}}},
            "models.moe.engine.simulated.experts.top_k",
        ),
        ("models.dense.engine.expert_parallel", True, "models.dense.engine.expert_parallel"),
        ("models.moe.engine", {"expert_parallel": True}, "models.moe.engine.expert_parallel"),
        ("models.dense.engine.kv_window_tokens", 4096, "models.dense.engine.kv_window_tokens"),
        ("models.dense.engine.max_num_batched_tokens", 16, "models.dense.engine.max_num_batched_tokens"),
        ("models.dense.engine.tensor_parallel_size", 2, "models.dense.replicas.gpus"),
        ("models.dense.replicas", {"gpus": 0.5}, "models.dense.replicas.gpus"),
        ("models.dense.replicas", {"gpus": 2}, "models.dense.replicas.gpus"),
        ("models.dense.replicas", {"min": 3, "max": 2}, "models.dense.replicas.min"),
        ("models.dense.replicas", {"min": 0}, "models.dense.replicas.min"),
        ("models.dense.replicas", {"target_ongoing_requests": 65}, "models.dense.replicas.target_ongoing_requests"),
        ("models.dense.replicas", {"cpu_cores": "3-1"}, "models.dense.replicas.cpu_cores"),
        ("models.dense.replicas", {"cpu_cores": "0", "omp_threads": 2}, "models.dense.replicas.omp_threads"),
        ("contracts.verifier", {"max_prompt_tokens": 9, "max_completion_tokens": 9}, "contracts.verifier"),
        ("contracts.strong.latency_target_s", 121, "contracts.strong.latency_target_s"),
        ("contracts.strong.max_prompt_tokens", 1537, "contracts.strong.max_prompt_tokens"),
        ("contracts.strong.fallback", ["code", "code"], "contracts.strong.fallback.1"),
        ("contracts.strong.fallback", ["code", "nobody"], "contracts.strong.fallback.1"),
        ("contracts.strong.fallback", ["encoder"], "contracts.strong.fallback.0"),
        ("contracts.strong.fallback", ["embedding"], "contracts.strong.fallback.0"),
        ("contracts.strong.fallback", ["strong"], "contracts.strong.fallback.0"),
        ("contracts.code.fallback", ["big", "strong"], "contracts.code.fallback.1"),
        ("routing", {"code_role": "nobody"}, "routing.code_role"),
        ("routing", {"default_role": "embedding"}, "routing.default_role"),
        ("ingress", {"limits": {"prompt_bytes": 2_000_000}}, "ingress.limits.prompt_bytes"),
        ("ingress", {"limits": {"body_bytes_at_once": 1_000_000}}, "ingress.limits.body_bytes"),
        ("keys", {"path": "keys.jsonl"}, "keys.path"),
        ("ray", {"address": "auto", "num_cpus": 2}, "ray.num_cpus"),
        ("precision", {"leave": {"kv_usage": 0.9}}, "precision.leave.kv_usage"),
        ("precision", {"enter": {"kv_usage": 0.5}}, "precision.leave.kv_usage"),
        ("precision", {"leave": {"preemptions_per_s": 0.6}}, "precision.leave.preemptions_per_s"),
        ("precision", {"leave": {"queue_growth_per_s": 0.1}}, "precision.leave.queue_growth_per_s"),
        ("precision", {"leave": {"preemptions_per_s": 0.5}}, "precision.leave.preemptions_per_s"),
        ("precision", {"max_temperature": 0}, "precision.max_temperature"),
        ("precision", {"enter": {"preemptions_per_s": 0}}, "precision.enter.preemptions_per_s"),
        ("precision", {"enter": {"queue_growth_per_s": 0}}, "precision.enter.queue_growth_per_s"),
        ("precision", {"levels": ["shed", "twin", "shed"]}, "precision.levels.2"),
        ("precision", {"levels": ["shed", "nothing"]}, "precision.levels.1"),
        ("precision", {"best_effort": ["batch", "batch"]}, "precision.best_effort.1"),
        ("precision", {"dwell_s": 0}, "precision.dwell_s"),
        ("experts", {"cool": 1.5}, "experts.cool"),
        ("experts", {"hot": 1.1}, "experts.cool"),
        ("experts", {"hot": 1}, "experts.hot"),
        ("experts", {"dwell_s": 0}, "experts.dwell_s"),
        ("models.dense.precision", {"twin": "nobody"}, "models.dense.precision.twin"),
        ("models.dense.precision", {"twin": "dense"}, "models.dense.precision.twin"),
        ("models.dense.precision", {"twin": "encoder"}, "models.dense.precision.twin"),
        ("models.dense.precision", {"twin": "hosted"}, "models.dense.precision.twin"),
        ("models.dense.precision", {"pinned": 5}, "models.dense.precision.pinned"),
        ("models.dense.precision", {"kv_quality": {"fp4": QUALITY}}, "models.dense.precision.kv_quality.fp4"),
        (
            "models.dense.precision",
            {"kv_quality": {"fp8": QUALITY | {"kl": -1}}},
            "models.dense.precision.kv_quality.fp8.kl",
        ),
        ("models.encoder.precision", {"pinned": 0}, "models.encoder.precision.pinned"),
        ("models.encoder.precision", {"twin": "dense"}, "models.encoder.precision.twin"),
        ("models.hosted.precision", {"kv_quality": {"fp8": QUALITY}}, "models.hosted.precision.kv_quality"),
    ],
)
def test_fields_that_do_not_go_together_are_found(field: str, value: object, expected: str) -> None:
    config = base()
    holder: dict[str, Any] = config
    *steps, last = field.split(".")
    for step in steps:
        holder = holder[step]
    holder[last] = value
    assert expected in paths(config)


def test_a_window_lets_prompts_be_longer_than_the_model() -> None:
    config = base()
    config["models"]["dense"]["engine"]["kv_window_tokens"] = 1024
    config["contracts"]["strong"]["max_prompt_tokens"] = 100_000
    assert paths(config) == set()
    config["contracts"]["strong"]["max_completion_tokens"] = 1024
    assert paths(config) == {"contracts.strong.max_completion_tokens"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_beyond_loopback_keys_are_needed(host: str) -> None:
    config = base() | {"ingress": {"host": host}}
    assert parse_config(yaml.safe_dump(config), "test").keys_required
    config["keys"] = {"required": False}
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(config), "test")
    (mistake,) = caught.value.mistakes
    assert mistake.path == "keys.required"
    assert "pointsman keys add" in (mistake.remedy or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_keys_are_a_choice(host: str) -> None:
    config = base() | {"ingress": {"host": host}}
    assert not parse_config(yaml.safe_dump(config), "test").keys_required
    config["keys"] = {"required": True}
    assert parse_config(yaml.safe_dump(config), "test").keys_required


def test_a_model_with_a_twin_is_nobodys_twin() -> None:
    config = base()
    config["models"]["dense"]["precision"] = {"twin": "moe", "kv_quality": {"fp8": QUALITY}, "pinned": 4}
    assert paths(config) == set()
    config["models"]["moe"]["precision"] = {"twin": "dense"}
    assert paths(config) == {"models.dense.precision.twin", "models.moe.precision.twin"}


def test_a_level_is_pinned_among_those_that_there_are() -> None:
    config = base() | {"precision": {"levels": ["fp8_kv", "shed"]}}
    config["models"]["dense"]["precision"] = {"pinned": 2}
    assert paths(config) == set()
    config["precision"]["levels"] = ["shed"]
    assert paths(config) == {"models.dense.precision.pinned"}
