import json
import time

import pytest

from cluster.api.errors import ApiError
from cluster.api.json_body import parse_json
from cluster.config.ingress import LimitsConfig

LIMITS = LimitsConfig()
MIB = 1_048_576


def refusal(body: bytes, limits: LimitsConfig = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_json(body, limits)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": [1, -2.5e3, "x", null, true, {"b": []}]}',
        '{"a": "[[[{{{ \\" \\\\"}',
        '{"ключ": "\\ud83d\\ude00 😀"}',
        ' {"a":0} ',
    ],
)
def test_json_is_read_as_python_reads_it(text: str) -> None:
    assert parse_json(text.encode(), LIMITS) == json.loads(text)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"5",
        b"[]",
        b'"x"',
        b"{",
        b"}{",
        b'{"a": [}]',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": "\x01"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": 1, "a": 2}',
        b'{"x": {"a": 1, "\\u0061": 2}}',
        b'{"a": ' + b"9" * 65 + b"}",
        b'{"a": 0.' + b"1" * 65 + b"}",
        b'{"a": "open',
        b'{"a": "open\\',
    ],
)
def test_what_is_not_strict_json_is_a_400(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.code) == (400, "invalid_json")


def test_the_depth_is_bounded_exactly() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * (levels - 1) + b"[]" + b"}" * (levels - 1)

    assert parse_json(nested(32), LIMITS)
    error = refusal(nested(33))
    assert error.code == "json_depth"
    assert "32 levels" in error.message


def test_brackets_in_strings_do_not_count() -> None:
    assert parse_json(json.dumps({"a": "[" * 1000 + '"\\'}).encode(), LIMITS)


def test_the_number_of_values_is_bounded() -> None:
    limits = LimitsConfig(json_nodes=100)
    assert parse_json(b'{"a": [' + b"1," * 97 + b"1]}", limits)
    assert refusal(b'{"a": [' + b"1," * 98 + b"1]}", limits).code == "json_nodes"


def test_a_body_over_the_limit_is_a_413() -> None:
    assert refusal(b" " * (MIB + 1)).status == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b"x" * (MIB - 8) + b'"}',
        b'{"a":"' + b"\\n" * (MIB // 2 - 4) + b'"}',
        b'{"a":"' + b"\\ud83d\\ude00" * (MIB // 12 - 1) + b'"}',
        json.dumps({"messages": [{"role": "user", "content": "x" * 500}] * 1800}).encode(),
        b"[" + b"1," * (MIB // 2 - 2) + b"1]",
        b'{"a":[' + b'"",' * (MIB // 3 - 4) + b"0]}",
        b"[" * (MIB - 1),
        b'"' * (MIB - 1),
        b'{"a":"' + b'\\"' * (MIB // 2 - 4),
        b'{"a":[' + b'{"b":1.5},' * 9_999 + b"1]}",
        b"\\" * (MIB - 1),
        b"]" * (MIB // 2) + b"[" * (MIB // 2 - 1),
    ],
    ids=range(12),
)
def test_no_body_of_a_mebibyte_takes_long(body: bytes) -> None:
    assert len(body) <= MIB
    times = []
    statuses = {400}
    for _ in range(3):
        started = time.thread_time()
        try:
            parse_json(body, LIMITS)
        except ApiError as error:
            statuses.add(error.status)
        times.append(time.thread_time() - started)
    assert statuses == {400}
    assert min(times) < 0.05
