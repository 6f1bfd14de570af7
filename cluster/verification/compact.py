"""A compact verifier: a model is asked yes or no, and how sure it is is read from the probabilities of the two words."""

from __future__ import annotations

import math
from typing import Final

from cluster.api.json_body import JsonObject, JsonValue
from cluster.verification.verdict import Verdict

NAME: Final = "verifier"
TOP_LOGPROBS: Final = 5
"""Words whose probabilities are asked for; OpenAI allows 20, engines of the embedded models 20."""

MAX_QUESTION_CHARS: Final = 2000
MAX_ANSWER_CHARS: Final = 2000
"""Characters of question and answer that the verifier sees; of longer ones the end of the question and the answer's start."""

ANSWERS: Final = "You check answers. Is the answer to the question right and complete? Reply with one word: yes or no."
REWRITES: Final = "You compare two texts. Does the second say the same as the first? Reply with one word: yes or no."


def right_answer(question: str, answer: str) -> JsonObject:
    """A chat request, without `model`, that asks whether `answer` answers `question`."""
    shown = f"Question: {question[-MAX_QUESTION_CHARS:]}\nAnswer: {answer[:MAX_ANSWER_CHARS]}"
    return _asking(ANSWERS, f"{shown}\nIs the answer right? yes or no:")


def same_meaning(first: str, second: str) -> JsonObject:
    """A chat request, without `model`, that asks whether two texts say the same."""
    shown = f"First: {first[:MAX_ANSWER_CHARS]}\nSecond: {second[:MAX_ANSWER_CHARS]}"
    return _asking(REWRITES, f"{shown}\nDo they say the same? yes or no:")


def read_judgement(reply: JsonValue, threshold: float, name: str = NAME) -> Verdict:
    """The verdict in a chat completion; never raises.

    Its score is P(yes) / (P(yes) + P(no)) over the first token's most probable words. Where the engine reports no
    probabilities the word itself counts, 1 or 0; where it is neither, nothing is verified.
    """
    choice = _first(_get(reply, "choices"))
    tops = _get(_first(_get(_get(choice, "logprobs"), "content")), "top_logprobs")
    yes, no = 0.0, 0.0
    for top in tops if isinstance(tops, list) else ():
        token, logprob = _get(top, "token"), _get(top, "logprob")
        if not isinstance(token, str) or not isinstance(logprob, int | float):
            continue
        probability = math.exp(min(float(logprob), 0.0))
        yes += probability if _word(token) == "yes" else 0.0
        no += probability if _word(token) == "no" else 0.0
    if yes + no > 0:
        score = yes / (yes + no)
        ok = score >= threshold
        return Verdict(ok, name, f"yes with {score:.2f}, {'at least' if ok else 'below'} {threshold:g}", score)
    said = _get(_get(choice, "message"), "content")
    word = _word(said.split(maxsplit=1)[0]) if isinstance(said, str) and said.strip() else ""
    if word in ("yes", "no"):
        return Verdict(word == "yes", name, f"{word}, by its word alone", float(word == "yes"))
    return Verdict(False, name, "the verifier said neither yes nor no")


def _asking(system: str, user: str) -> JsonObject:
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }


def _word(token: str) -> str:
    return token.strip(" \t\r\n.,:;!?\"'*Ġ▁").casefold()


def _get(value: JsonValue, name: str) -> JsonValue:
    return value.get(name) if isinstance(value, dict) else None


def _first(value: JsonValue) -> JsonValue:
    return value[0] if isinstance(value, list) and value else None
