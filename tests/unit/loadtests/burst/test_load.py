from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.burst.arms import ARMS, REPLICATED, SHAPE, STATIC, Terms, config_of, order, parsed
from loadtests.burst.load import CONCENTRATION, Kind, Phases, Texts, requests_of, saturating

CONFIG = Path(__file__).parents[4] / "infra" / "clusters" / "pools.yaml"
PHASES = Phases(before_s=50.0, code_s=200.0, stories_s=200.0, after_s=50.0)
TERMS = Terms(900.0, 0.5, port=8555)


def test_phases_follow_one_another() -> None:
    phases = Phases(5.0, 10.0, 20.0, 3.0)
    assert phases.starts() == (0.0, 5.0, 15.0, 35.0) and phases.seconds == 38.0
    assert [phases.at(at_s).name for at_s in (0.0, 4.9, 5.0, 34.9, 35.0, 99.0)] == [
        "calm before",
        "calm before",
        "surge of code",
        "surge of stories",
        "calm after",
        "calm after",
    ]
    assert [phase.surge for phase in phases.all] == [False, True, True, False]


def test_the_same_seed_sends_the_same_requests() -> None:
    assert requests_of(3, 2.0, PHASES, 8) == requests_of(3, 2.0, PHASES, 8)
    assert requests_of(3, 2.0, PHASES, 8) != requests_of(4, 2.0, PHASES, 8)


def test_arrivals_come_at_the_rate_of_their_phase_and_in_order() -> None:
    requests = requests_of(1, 4.0, PHASES, 8)
    times = [one.at_s for one in requests]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < PHASES.seconds
    assert [one.number for one in requests] == list(range(len(requests)))
    surge = sum(50 <= at_s < 450 for at_s in times)
    assert surge == pytest.approx(1600, rel=0.1)
    assert len(times) - surge == pytest.approx(4.0 * PHASES.calm_share * 100, rel=0.25)


def test_a_surge_is_of_its_kind_and_calm_is_mixed() -> None:
    requests = requests_of(1, 4.0, PHASES, 8)
    code = [one.kind for one in requests if 50 <= one.at_s < 250]
    calm = [one.kind for one in requests if not PHASES.at(one.at_s).surge]
    assert code.count(Kind.CODE) / len(code) == pytest.approx(CONCENTRATION, abs=0.04)
    assert {kind: calm.count(kind) > len(calm) / 6 for kind in Kind} == dict.fromkeys(Kind, True)


def test_too_many_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="shorten"):
        requests_of(1, 1000.0, PHASES, 8)


def test_texts_do_not_begin_alike() -> None:
    texts = Texts(1)
    made = [texts.next(kind) for kind in Kind for _ in range(200)]
    assert len(set(made)) == len(made)
    assert {one.kind for one in saturating(1, 10, 8)} == {Kind.CODE, Kind.STORY}


def test_the_body_asks_for_an_exact_number_of_tokens() -> None:
    body = saturating(1, 1, 7)[0].body("sparse")
    assert body["max_tokens"] == 7 and body["ignore_eos"] is True and body["model"] == "sparse"


def test_arms_take_turns() -> None:
    assert order(0) == (STATIC, REPLICATED) and order(1) == (REPLICATED, STATIC)


@pytest.mark.parametrize("simulated", [False, True])
def test_arms_differ_in_replicas_alone(simulated: bool) -> None:
    base = CONFIG.read_text(encoding="utf-8")
    terms = Terms(900.0, 0.5, simulated, SHAPE, 8555)
    static, replicated = (parsed(config_of(base, "sparse", arm, terms)) for arm in ARMS)
    fixed, by_heat = static.models["sparse"].pools, replicated.models["sparse"].pools
    assert fixed is not None and by_heat is not None
    assert (fixed.min, fixed.max) == (1, 1) and by_heat.min == 1 < by_heat.max
    assert fixed.model_copy(update={"max": by_heat.max}) == by_heat
    assert by_heat.quota_pairs_per_s == 900.0 and by_heat.high == 0.5 and by_heat.low < by_heat.high
    assert list(static.models) == ["sparse"] and static.ingress.port == 8555
    experts = static.models["sparse"].engine.simulated
    assert (experts is not None) is simulated
    assert static.models["sparse"].engine.type == ("simulated" if simulated else "vllm")


def test_what_the_config_says_is_kept_where_no_terms_are_set() -> None:
    base = CONFIG.read_text(encoding="utf-8")
    written = parsed(base).models["sparse"].pools
    made = parsed(config_of(base, "sparse", STATIC, Terms(None, None))).models["sparse"].pools
    assert written is not None and made is not None
    assert made.quota_pairs_per_s == written.quota_pairs_per_s and made.high == written.high


def test_a_model_without_pools_is_refused() -> None:
    with pytest.raises(ValueError, match="no model 'dense' with pools"):
        config_of(CONFIG.read_text(encoding="utf-8"), "dense", STATIC, TERMS)
