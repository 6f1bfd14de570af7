import pytest

from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject, JsonValue
from cluster.api.knobs import NO_KNOBS
from cluster.config.experts import ExpertsConfig
from cluster.config.ingress import LimitsConfig
from cluster.config.routing import KnobsConfig
from cluster.routing.knob_bounds import check_expert_log, check_knobs
from cluster.routing.latency_class import LatencyClass

LIMITS = LimitsConfig()


def chat(knobs: JsonValue) -> JsonObject:
    return {"model": "auto", "messages": [{"role": "user", "content": "x"}], "pointsman": knobs}


def test_knobs_are_read_and_kept_from_the_engine() -> None:
    request = parse_chat(
        chat(
            {
                "allowed_models": ["dense", "mini"],
                "latency_class": "batch",
                "business_critical": True,
                "retrieval_confidence": 0.4,
                "min_confidence": 0.5,
                "retries": 2,
            }
        ),
        LIMITS,
    )
    knobs = request.knobs
    assert knobs.allowed_models == {"dense", "mini"}
    assert knobs.latency_class is LatencyClass.BATCH
    assert (knobs.business_critical, knobs.retrieval_confidence) == (True, 0.4)
    assert (knobs.min_confidence, knobs.retries) == (0.5, 2)
    assert "pointsman" not in request.body
    assert parse_completion({"model": "m", "prompt": "x", "pointsman": {"retries": 1}}, LIMITS).knobs.retries == 1
    assert parse_chat(chat(None), LIMITS).knobs is NO_KNOBS


@pytest.mark.parametrize(
    ("knobs", "param"),
    [
        ({"allowed_models": []}, "pointsman.allowed_models"),
        ({"allowed_models": ["m"] * 65}, "pointsman.allowed_models"),
        ({"allowed_models": [3]}, "pointsman.allowed_models"),
        ({"latency_class": "now"}, "pointsman.latency_class"),
        ({"business_critical": "yes"}, "pointsman.business_critical"),
        ({"retrieval_confidence": 1.1}, "pointsman.retrieval_confidence"),
        ({"retries": 17}, "pointsman.retries"),
        ({"experts": 1}, "pointsman.experts"),
        ({"canary": 1}, "pointsman"),
        ([], "pointsman"),
    ],
)
def test_mistakes_are_named(knobs: JsonValue, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(chat(knobs), LIMITS)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "canary" not in caught.value.message


def test_the_operator_keeps_knobs_to_himself() -> None:
    request = parse_chat(chat({"latency_class": "interactive"}), LIMITS)
    check_knobs(KnobsConfig(), request)
    with pytest.raises(ApiError, match="operator of this cluster decides"):
        check_knobs(KnobsConfig(latency_class=False), request)
    with pytest.raises(ApiError, match="at most 1"):
        check_knobs(KnobsConfig(max_retries=1), parse_chat(chat({"retries": 2}), LIMITS))


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_list_of_experts_is_refused_only_where_it_is_asked_for_and_turned_off(asked: bool | None) -> None:
    request = parse_chat(chat({"experts": asked}), LIMITS)
    check_knobs(KnobsConfig(), request)
    check_expert_log(ExpertsConfig(log_tokens=1), request)
    if not asked:
        check_expert_log(ExpertsConfig(log_tokens=0), request)
        return
    with pytest.raises(ApiError, match="turned the log of experts off") as caught:
        check_expert_log(ExpertsConfig(log_tokens=0), request)
    assert (caught.value.status, caught.value.param) == (400, "pointsman.experts")
