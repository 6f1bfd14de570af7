from __future__ import annotations

import json

import pytest

from tests.unit.cli.fake_api import Canned

PATH = "/v1/chat/completions"
SOURCE = {
    "model": "large",
    "role": "strong",
    "reason": "auto: everything else",
    "engine": "vllm",
    "attempts": 1,
    "trace_id": "ab" * 16,
    "cached_tokens": 4,
    "truncated_turns": 0,
    "truncated_tokens": 0,
}


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "usage": None})


def stream(*pieces: bytes, source: dict[str, object] | None = None, done: bool = True) -> Canned:
    ending = [event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}})]
    ending.append(f": pointsman {json.dumps(source or SOURCE)}\n\n".encode())
    ending += [b"data: [DONE]\n\n"] if done else []
    return Canned([*pieces, *ending], 200, {"x-pointsman-trace-id": "ab" * 16, "x-request-id": "r1"})


def test_the_answer_is_streamed_to_stdout_and_its_source_to_stderr(invoke, api, running):
    api.answers[PATH] = stream(piece("The capital"), piece(" is"), piece(" Paris.", "stop"))
    done = invoke("chat", "What is the capital of France?")
    assert done.exit_code == 0, done.output
    assert done.stdout == "The capital is Paris.\n"
    assert "large as strong" in done.stderr
    assert "why: auto: everything else" in done.stderr
    assert f"pointsman trace {'ab' * 16}" in done.stderr
    path, headers, body = api.asked[0]
    assert path == PATH
    assert "authorization" not in headers
    assert body["model"] == "auto"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert "max_tokens" not in body
    assert body["temperature"] == 0


def test_options_reach_the_cluster(invoke, api, running):
    api.answers[PATH] = stream(piece("Hi", "stop"))
    options = [
        "--model",
        "fast",
        "--system",
        "Be brief.",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--key",
        "pm-secret",
    ]
    done = invoke("chat", "-", *options, stdin="from stdin\n")
    assert done.exit_code == 0, done.output
    _, headers, body = api.asked[0]
    assert headers["authorization"] == "Bearer pm-secret"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("fast", 5, 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "from stdin"
    assert "pm-secret" not in done.output


def test_a_prompt_may_be_piped_in(invoke, api, running):
    api.answers[PATH] = stream(piece("Hi", "stop"))
    assert invoke("chat", stdin="piped").exit_code == 0
    assert api.asked[0][2]["messages"][0]["content"] == "piped"


def test_a_whole_answer(invoke, api, running):
    api.json(
        PATH,
        {
            "choices": [{"message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2},
            "pointsman": SOURCE,
        },
    )
    done = invoke("chat", "hi", "--no-stream")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Paris.\n"
    assert "2 tokens" in done.stderr
    assert api.asked[0][2]["stream"] is False


def test_json_for_scripts(invoke, api, running):
    api.answers[PATH] = stream(piece("Pa"), piece("ris"), piece(".", "length"))
    done = invoke("chat", "hi", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["text"] == "Paris."
    assert (answer["model"], answer["trace_id"], answer["request_id"]) == ("large", "ab" * 16, "r1")
    assert (answer["prompt_tokens"], answer["completion_tokens"], answer["finish_reason"]) == (12, 3, "length")
    assert answer["first_token_s"] <= answer["total_s"]


def test_turns_that_left_by_the_window_are_told(invoke, api, running):
    api.answers[PATH] = stream(piece("Hi", "length"), source={**SOURCE, "truncated_turns": 2, "truncated_tokens": 310})
    done = invoke("chat", "hi")
    assert "2 older turns (310 tokens) were left out" in done.stderr
    assert "cut at its limit" in done.stderr


def test_an_answer_for_which_other_experts_stood_in_says_so(invoke, api, running):
    experts = {"tokens": 9, "pools": {"degraded": True, "degraded_rows": 3, "degraded_reason": "Some were away."}}
    api.answers[PATH] = stream(piece("Hi", "stop"), source={**SOURCE, "experts": experts})
    assert "Some were away." in invoke("chat", "hi").stderr
    assert json.loads(invoke("chat", "hi", "--json").stdout)["degraded"] is True
    api.answers[PATH] = stream(piece("Hi", "stop"), source={**SOURCE, "experts": {"tokens": 9}})
    assert json.loads(invoke("chat", "hi", "--json").stdout)["degraded"] is False


def test_without_a_comment_the_headers_tell(invoke, api, running):
    headers = {"x-pointsman-model": "small", "x-pointsman-trace-id": "cd" * 16, "x-pointsman-truncated-tokens": "7"}
    api.answers[PATH] = Canned([piece("Hi", "stop"), b"data: [DONE]\n\n"], 200, headers)
    done = invoke("chat", "hi", "--json")
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["trace_id"], answer["truncated_tokens"]) == ("small", "cd" * 16, 7)


@pytest.mark.parametrize(
    ("canned", "words"),
    [
        (stream(piece("The cap"), done=False), "broke off before its end"),
        (
            stream(piece("The cap"), event({"error": {"message": "The replica was lost.", "code": "replica_lost"}})),
            "The replica was lost.",
        ),
        (Canned([piece("The cap"), b"data: {broken\n\n"], 200, {"x-pointsman-trace-id": "ab" * 16}), "OpenAI's form"),
    ],
    ids=["no-done", "error-event", "garbage"],
)
def test_an_answer_that_breaks_off_is_an_error(invoke, api, running, canned, words):
    api.answers[PATH] = canned
    done = invoke("chat", "hi")
    assert done.exit_code == 1
    assert done.stdout == "The cap\n"
    assert words in done.stderr
    assert f"pointsman trace {'ab' * 16}" in done.stderr


@pytest.mark.parametrize(("status", "code"), [(400, 1), (401, 3), (503, 1)])
def test_a_refusal_is_shown_in_the_clusters_words(invoke, api, running, status, code):
    api.json(PATH, {"error": {"message": "Not like this.", "code": "x"}}, status)
    done = invoke("chat", "hi")
    assert done.exit_code == code
    assert "Not like this." in done.stderr
    assert ("POINTSMAN_API_KEY" in done.stderr) == (status == 401)
    assert done.stdout == ""


def test_without_a_cluster_it_says_how_to_start_one(invoke):
    done = invoke("chat", "hi")
    assert done.exit_code == 3
    assert "pointsman up" in done.stderr


def test_nobody_at_the_url(invoke, free_port):
    done = invoke("chat", "hi", "--url", f"http://127.0.0.1:{free_port}/v1")
    assert done.exit_code == 3
    assert "does not answer" in done.stderr


@pytest.mark.parametrize("url", ["ftp://x", "http://", ""])
def test_a_url_that_is_none(invoke, url):
    done = invoke("chat", "hi", "--url", url)
    assert done.exit_code in (2, 3)


def test_an_empty_prompt(invoke, running):
    assert invoke("chat", "-", stdin="  \n").exit_code == 2


def test_a_url_with_v1_and_a_prefix(invoke, api):
    api.answers["/proxy" + PATH] = stream(piece("Hi", "stop"))
    done = invoke("chat", "hi", "--url", f"{api.url}/proxy/v1/")
    assert done.exit_code == 0
    # That cluster's traces are elsewhere, so no command is offered that would not find them.
    assert f"trace {'ab' * 16}" in done.stderr
    assert "pointsman trace" not in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1:port"])
def test_a_url_that_cannot_be_read_is_a_mistake_of_the_arguments(invoke, url):
    done = invoke("chat", "hi", "--url", url)
    assert done.exit_code == 2
    assert "no URL of a cluster" in done.stderr
    assert "should not happen" not in done.stderr


@pytest.mark.parametrize("key", ["pm-secret\nword", "pm-secret word", "pm-secret\u20acword"])
def test_a_key_that_no_header_can_hold_is_not_repeated(invoke, running, key):
    done = invoke("chat", "hi", "--key", key)
    assert done.exit_code == 2
    assert "POINTSMAN_API_KEY" in done.stderr
    assert "secret" not in done.output


def test_the_line_end_of_a_key_from_a_file_does_no_harm(invoke, api, running):
    api.answers[PATH] = stream(piece("Hi", "stop"))
    assert invoke("chat", "hi", "--key", "pm-secret\n").exit_code == 0
    assert api.asked[-1][1]["authorization"] == "Bearer pm-secret"


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_refusal_tells_how_to_look_at_its_trace(invoke, api, running, status):
    headers = {"content-type": "application/json", "x-pointsman-trace-id": "ab" * 16}
    api.answers[PATH] = Canned(b'{"error": {"message": "Not like this."}}', status, headers)
    done = invoke("chat", "hi")
    assert done.exit_code in (1, 3)
    assert f"pointsman trace {'ab' * 16}" in done.stderr
    assert ("POINTSMAN_API_KEY" in done.stderr) == (status == 401)
