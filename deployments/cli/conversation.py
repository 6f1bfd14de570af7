"""A chat at the terminal: one question, or turn by turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from deployments.cli import output
from deployments.cli.answer import Answer, BrokenAnswerError, Message, OnText, Question, RefusedAnswerError, ask
from deployments.cli.api import Api
from deployments.cli.errors import CliError
from deployments.cli.place import Place

_HELP = (
    "/model NAME asks another model or role, /new forgets the chat, /exit or Ctrl-D ends it, Ctrl-C stops an answer."
)


@dataclass(frozen=True, slots=True)
class Talk:
    """Where and how to ask."""

    api: Api
    place: Place
    traces_here: bool
    """Whether the place holds the traces of the cluster that is asked."""
    question: Question
    """Everything but the messages to come; its messages are the system prompt, if there is one."""


def ask_once(talk: Talk, prompt: str, *, as_json: bool) -> None:
    """One question: the answer on stdout, where it came from on stderr. Raises `CliError`."""
    question = replace(talk.question, messages=[*talk.question.messages, Message("user", prompt)])
    if as_json:
        output.print_json(_as_json(_ask(talk, question, lambda _text: None)))
        return
    tell(talk, _print_answer(talk, question))


def converse(talk: Talk) -> None:
    """Ask turn by turn until the user has had enough."""
    import readline  # noqa: F401 - gives `input` a line editor and a history

    system = list(talk.question.messages)
    turns: list[Message] = []
    output.remark((f"Talking to {talk.api.url} ({talk.question.model}). {_HELP}", "dim"))
    while True:
        try:
            typed = input("\n> ").strip()
        except EOFError:
            output.remark("")
            return
        except KeyboardInterrupt:
            output.remark("")
            continue
        if typed in ("/exit", "/quit"):
            return
        if typed.startswith("/"):
            talk, turns = _command(talk, turns, typed)
            continue
        if not typed:
            continue
        asked = [*turns, Message("user", typed)]
        try:
            answer = _print_answer(talk, replace(talk.question, messages=[*system, *asked]))
        except KeyboardInterrupt:
            # Closing the connection has freed the engine; the turn is as if it had not been asked.
            output.remark("", ("\nStopped; this turn is forgotten.", "dim"))
            continue
        except CliError as error:
            output.print_error(error)
            continue
        tell(talk, answer)
        turns = [*asked, Message("assistant", answer.text)]


def _command(talk: Talk, turns: list[Message], typed: str) -> tuple[Talk, list[Message]]:
    command, _, argument = typed.partition(" ")
    if command == "/new":
        output.remark(("The chat begins anew.", "dim"))
        return talk, []
    if command == "/model" and argument.strip():
        output.remark((f"Asking {argument.strip()} from now on.", "dim"))
        return replace(talk, question=replace(talk.question, model=argument.strip())), turns
    output.remark((_HELP, "dim"))
    return talk, turns


def _ask(talk: Talk, question: Question, on_text: OnText) -> Answer:
    """The answer; one that is refused or breaks off says how to look at its trace."""
    try:
        return ask(talk.api, question, on_text)
    except RefusedAnswerError as error:
        told = [line for line in (error.remedy, _trace_hint(talk, error.trace_id)) if line]
        raise CliError(error.message, "\n".join(told) or None, error.code) from None
    except BrokenAnswerError as error:
        raise BrokenAnswerError(error.message, _trace_hint(talk, error.trace_id)) from None


def _print_answer(talk: Talk, question: Question) -> Answer:
    """Print the answer as it comes; ends its line however it ends."""
    shown = output.visible if sys.stdout.isatty() else str
    printed = False

    def show(text: str) -> None:
        nonlocal printed
        printed = True
        sys.stdout.write(shown(text))
        sys.stdout.flush()

    try:
        return _ask(talk, question, show)
    finally:
        if printed:
            sys.stdout.write("\n")
            sys.stdout.flush()


def tell(talk: Talk, answer: Answer) -> None:
    """Where the answer came from, dim, on stderr."""
    source = answer.provenance
    if not answer.text:
        output.warn(f"the answer is empty (finish reason: {answer.finish_reason or 'none'})")
    who = [source.model or "?"]
    if source.role:
        who.append(f"as {source.role}")
    if source.engine and source.engine != "vllm":
        who.append(f"({source.engine} engine)")
    facts = [" ".join(who), f"{answer.completion_tokens} tokens in {output.duration(answer.total_s)}"]
    if answer.first_s is not None:
        facts.append(f"first after {output.duration(answer.first_s)}")
    if answer.tokens_per_s is not None:
        facts.append(f"{answer.tokens_per_s:.0f} tokens/s")
    if source.cached_tokens:
        facts.append(f"{source.cached_tokens} of {answer.prompt_tokens} prompt tokens cached")
    if source.attempts > 1:
        facts.append(f"{source.attempts} attempts")
    output.remark((" · ".join(facts), "dim"))
    if source.reason:
        output.remark((f"why: {output.visible(source.reason)}", "dim"))
    for warning in _warnings(answer):
        output.remark((warning, "yellow"))
    if hint := _trace_hint(talk, source.trace_id):
        output.remark((hint, "dim"))


def _warnings(answer: Answer) -> Iterator[str]:
    """What makes an answer other than it might have been."""
    source = answer.provenance
    if source.truncated_tokens:
        turns = "1 older turn" if source.truncated_turns == 1 else f"{source.truncated_turns} older turns"
        yield f"The window slid: {turns} ({source.truncated_tokens} tokens) were left out."
    if source.degraded:
        told = source.experts and source.experts.pools and source.experts.pools.degraded_reason
        yield output.visible(told or "Other experts stood in for some of the model's own.")
    if answer.finish_reason == "length":
        yield "The answer was cut at its limit of tokens (--max-tokens)."


def _trace_hint(talk: Talk, trace_id: str | None) -> str | None:
    if trace_id is None:
        return None
    if not talk.traces_here:
        return f"trace {trace_id}"
    return f"trace {trace_id}  →  {talk.place.command(f'trace {trace_id}')}"


def _as_json(answer: Answer) -> dict[str, object]:
    source = answer.provenance
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": source.model,
        "role": source.role,
        "reason": source.reason,
        "engine": source.engine,
        "attempts": source.attempts,
        "trace_id": source.trace_id,
        "request_id": answer.request_id,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cached_tokens": source.cached_tokens,
        "truncated_turns": source.truncated_turns,
        "truncated_tokens": source.truncated_tokens,
        "degraded": source.degraded,
        "first_token_s": None if answer.first_s is None else round(answer.first_s, 4),
        "total_s": round(answer.total_s, 4),
        "tokens_per_s": None if answer.tokens_per_s is None else round(answer.tokens_per_s, 1),
    }
