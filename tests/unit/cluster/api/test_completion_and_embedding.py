import pytest

from cluster.api.completion import parse_completion
from cluster.api.embedding import parse_embedding
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonValue
from cluster.config.ingress import LimitsConfig

LIMITS = LimitsConfig()
CANARY = "canary-c0de"


@pytest.mark.parametrize(
    ("value", "count", "longest", "are_tokens"),
    [("ab", 1, 2, False), (["ab", "über"], 2, 5, False), ([1, 2, 3], 1, 12, True), ([[1], [2, 3]], 2, 8, True)],
)
def test_inputs_come_in_four_forms(value: JsonValue, count: int, longest: int, are_tokens: bool) -> None:
    completion = parse_completion({"model": "dense", "prompt": value, "n": 2}, LIMITS)
    assert (completion.prompts, completion.sequences, completion.prompt_bytes) == (count, 2 * count, longest)
    embedding = parse_embedding({"model": "encoder", "input": value}, LIMITS)
    assert (embedding.inputs, embedding.prompt_bytes, embedding.are_tokens) == (count, longest, are_tokens)
    assert embedding.body == {"input": value, "encoding_format": "float"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        [],
        [""],
        [[]],
        5,
        {"a": 1},
        [CANARY, 1],
        [[1], "x"],
        [1, "x"],
        [-1],
        [True],
        [1.5],
        [2**24],
        ["x"] * 257,
        "x" * 524_289,
    ],
    ids=range(16),
)
def test_inputs_past_a_bound_name_the_field(value: JsonValue) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion({"model": "dense", "prompt": value}, LIMITS)
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    with pytest.raises(ApiError) as caught:
        parse_embedding({"model": "encoder", "input": value}, LIMITS)
    assert (caught.value.status, caught.value.param) == (400, "input")
    assert CANARY not in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("best_of", 10**9),
        ("best_of", 0),
        ("logprobs", 21),
        ("logprobs", True),
        ("echo", "yes"),
        ("n", 100),
    ],
)
def test_completion_fields_past_a_bound(field: str, value: JsonValue) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion({"model": "dense", "prompt": "x", field: value}, LIMITS)
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["suffix", "prompt_embeds", "response_format", "messages", "tools", "guided_json"])
def test_completions_refuse_what_they_do_not_have(field: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion({"model": "dense", "prompt": "x", field: CANARY}, LIMITS)
    assert CANARY not in caught.value.message


def test_prompts_times_n_are_bounded() -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion({"model": "dense", "prompt": ["x"] * 200, "n": 2}, LIMITS)
    assert caught.value.param == "n"


def test_completion_options_reach_the_engine() -> None:
    request = parse_completion({"model": "dense", "prompt": "x", "echo": True, "logprobs": 3, "best_of": 1}, LIMITS)
    assert request.body == {"stream": False, "prompt": "x", "logprobs": 3, "echo": True}


def test_embedding_options() -> None:
    request = parse_embedding(
        {"model": "e", "input": "x", "encoding_format": "base64", "dimensions": 64, "user": "u"}, LIMITS
    )
    assert (request.base64, request.dimensions) == (True, 64)
    assert request.body == {"input": "x", "encoding_format": "base64", "dimensions": 64}


@pytest.mark.parametrize(
    ("field", "value"), [("encoding_format", CANARY), ("dimensions", 0), ("dimensions", True), ("stream", True)]
)
def test_embedding_fields_past_a_bound(field: str, value: JsonValue) -> None:
    with pytest.raises(ApiError) as caught:
        parse_embedding({"model": "e", "input": "x", field: value}, LIMITS)
    assert caught.value.status == 400
    assert CANARY not in caught.value.message
