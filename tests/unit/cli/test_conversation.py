from __future__ import annotations

import pytest

from deployments.cli.answer import Message, Question
from deployments.cli.api import Api
from deployments.cli.conversation import Talk, converse
from deployments.cli.place import find_place
from tests.unit.cli.test_chat import PATH, event, piece, stream


@pytest.fixture
def talk(api, state_dir) -> Talk:
    return Talk(Api(api.url, None), find_place(state_dir), False, Question([Message("system", "Be brief.")], "auto"))


def type_lines(monkeypatch, *lines: str | type[BaseException]) -> None:
    left = list(lines)

    def typed(_prompt: str) -> str:
        line = left.pop(0) if left else EOFError
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)


def test_turns_build_on_each_other(monkeypatch, api, talk, capsys):
    api.answers[PATH] = stream(piece("Hello.", "stop"))
    type_lines(monkeypatch, "hi", "", "/model small", "and now?")
    converse(talk)
    assert capsys.readouterr().out == "Hello.\nHello.\n"
    first, second = (body for _, _, body in api.asked)
    assert [message["content"] for message in first["messages"]] == ["Be brief.", "hi"]
    assert [message["content"] for message in second["messages"]] == ["Be brief.", "hi", "Hello.", "and now?"]
    assert (first["model"], second["model"]) == ("auto", "small")


def test_a_chat_can_begin_anew_and_a_failed_turn_is_forgotten(monkeypatch, api, talk, capsys):
    api.answers[PATH] = stream(piece("Hel"), event({"error": {"message": "lost"}}))
    type_lines(monkeypatch, "one", KeyboardInterrupt, "/new", "/help", "two", "/exit", "never")
    converse(talk)
    assert "lost" in capsys.readouterr().err
    assert [message["content"] for message in api.asked[-1][2]["messages"]] == ["Be brief.", "two"]
    assert len(api.asked) == 2


def test_an_interrupted_answer_ends_the_turn_alone(monkeypatch, talk, capsys):
    answers = iter([KeyboardInterrupt()])

    def interrupted(*_arguments: object) -> None:
        raise next(answers)

    monkeypatch.setattr("deployments.cli.conversation.ask", interrupted)
    type_lines(monkeypatch, "hi", "/exit")
    converse(talk)
    assert "forgotten" in capsys.readouterr().err
