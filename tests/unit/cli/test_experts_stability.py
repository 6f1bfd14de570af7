"""`pointsman experts stability`: what is asked, and how the answers are compared."""

from __future__ import annotations

import json

import pytest

from deployments.cli.answer import PATH as CHAT
from tests.unit.cli.experts_page import model, page
from tests.unit.cli.fake_api import Canned

PAGE = "/v1/experts"


def told(tokens=(1, 2, 3), experts=(0, 1), name="moe", replica="ingress#replica-1", top=(0, 1), left_out=0) -> bytes:
    """An answer whose tokens all went to the same two of four experts, in both layers."""
    log = {"tokens": tokens, "experts": [[list(experts)] * 2 for _ in tokens], "left_out": left_out}
    named = [[0, expert, 0.5] for expert in top]
    shape = {"layers": 2, "experts": 4, "top_k": 2}
    return answer(
        {**shape, "tokens": len(tokens), "distinct": 4, "entropy": 1, "top": named, "logs": [log]}, name, replica
    )


def answer(experts: object, name: str = "moe", replica: str = "ingress#replica-1") -> bytes:
    return json.dumps({"choices": [], "pointsman": {"model": name, "replica": replica, "experts": experts}}).encode()


class Sequence(dict):
    """Answers of the chat route one after the other, the last one for good."""

    def __init__(self, api, answers):
        super().__init__(api.answers)
        self._left = list(answers)

    def get(self, path, default=None):
        if path != CHAT:
            return super().get(path, default)
        return Canned(self._left.pop(0) if len(self._left) > 1 else self._left[0])


@pytest.fixture
def answers(api, running):
    def prepare(*bodies: bytes) -> None:
        api.json(PAGE, page())
        api.answers = Sequence(api, bodies)

    return prepare


def test_near_identical_prompts_are_asked_of_the_only_sparse_model(invoke, api, answers):
    answers(told())
    done = invoke("experts", "stability", "--prompt", "Tell me a story.", "--max-tokens", "3", "--json")
    assert done.exit_code == 0, done.output
    asked = [body for path, _, body in api.asked if path == CHAT]
    prompts = [body["messages"][0]["content"] for body in asked]
    assert prompts[:2] == ["Tell me a story."] * 2
    assert len(set(prompts[1:])) == len(prompts) - 1 == 8
    for body in asked:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("moe", 3, 0)
        assert body["pointsman"] == {"experts": True}
    result = json.loads(done.stdout)
    assert result["again"]["stability"]["score"] == 1
    assert result["totals"] == {
        "variants": 7,
        "compared": 7,
        "score": 1,
        "lowest": 1,
        "changed": 0,
        "model_changed": 0,
        "replica_changed": 0,
        "top_changed": 0,
    }


def test_what_changes_is_shown_and_counted(invoke, answers):
    answers(
        told(),
        told(),
        told(experts=(0, 3), replica="ingress#replica-2", top=(1, 0)),
        told(tokens=(9, 1, 2, 3), top=(0, 2)),
        answer({"unavailable": "the model has no experts"}, "dense"),
    )
    done = invoke("experts", "stability", "--prompt", "Tell me a story.", "--variants", "3")
    assert done.exit_code == 0, done.output
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[1] == ["the same again", "1.000", "0.0%", "3 of 3", "none", "same", "same", "same"]
    assert rows[2][1:] == ["0.500", "100.0%", "3 of 3", "token 0 layer 0", "same", "lica-2", "same"]
    assert rows[3][1:] == ["1.000", "0.0%", "3 of 3", "none", "same", "same", "changed"]
    assert rows[4][1:] == ["dense", "same", "changed"]
    assert "score 0.750 mean, 0.500 lowest; 50.0% of routes changed" in done.stdout
    assert "thrash model 1 of 3, replica 1 of 3, top 2 experts 2 of 3" in done.stdout


def test_more_variants_than_one_seed_makes(invoke, api, answers):
    answers(told())
    done = invoke("experts", "stability", "--prompt", "Tell me about the old mill by the river.", "--variants", "20")
    assert done.exit_code == 0, done.output
    prompts = [body["messages"][0]["content"] for path, _, body in api.asked if path == CHAT]
    assert len(prompts) == 22
    assert len(set(prompts)) == 21


def test_what_the_comparison_rests_on_is_said(invoke, answers):
    answers(told(tokens=(-1, -1), left_out=5))
    done = invoke("experts", "stability", "--variants", "1")
    assert "compared by their positions" in done.stderr
    assert "Only the first 2 tokens of each request" in done.stderr


def test_a_prompt_from_a_file(invoke, api, answers, tmp_path):
    answers(told())
    path = tmp_path / "prompt.txt"
    path.write_text("From a file.\n")
    assert invoke("experts", "stability", "--file", str(path), "--variants", "1").exit_code == 0
    assert api.asked[1][2]["messages"] == [{"role": "user", "content": "From a file.\n"}]
    path.write_bytes(b"\xff\xfe")
    for options, words in (
        (("--file", str(path)), "not text in UTF-8"),
        (("--file", str(tmp_path / "none")), "No such file"),
        (("--file", str(path), "--prompt", "x"), "two prompts"),
        (("--prompt", "  "), "is empty"),
    ):
        refused = invoke("experts", "stability", *options)
        assert refused.exit_code == 2
        assert words in refused.stderr


@pytest.mark.parametrize(
    ("told_by_page", "options", "status", "words"),
    [
        (page(log_tokens=0), (), 3, "experts.log_tokens: 0"),
        (page({}), (), 1, "no model of this cluster is sparse"),
        (page({"a": model(), "b": model()}), (), 2, "Name one with --model: a, b."),
    ],
)
def test_what_cannot_be_asked_is_not(invoke, api, running, told_by_page, options, status, words):
    api.json(PAGE, told_by_page)
    refused = invoke("experts", "stability", *options)
    assert refused.exit_code == status
    assert words in refused.stderr
    assert [path for path, _, _ in api.asked] == [PAGE]


def test_a_model_that_does_not_tell_says_why(invoke, answers):
    answers(answer({"unavailable": "the model has no experts"}, "dense"))
    refused = invoke("experts", "stability", "--model", "auto")
    assert refused.exit_code == 1
    assert "dense does not tell which experts its tokens went to: the model has no experts" in refused.stderr


def test_a_refusal_of_the_cluster_comes_through(invoke, api, running):
    api.json(PAGE, page())
    api.json(CHAT, {"error": {"message": "The model moe is not ready."}}, 503)
    refused = invoke("experts", "stability")
    assert refused.exit_code == 1
    assert "The model moe is not ready. (status 503)" in refused.stderr
