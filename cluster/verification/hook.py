"""An operator's own check, by import path. It is named in the config alone: a request cannot choose what is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, TypeAlias

from cluster.verification.verdict import Verdict

NAME: Final = "hook"

Hook: TypeAlias = "Callable[[str, str], bool | Verdict]"
"""Takes the question (the last user message or the prompt) and the answer; runs on a thread of its own."""


class HookError(RuntimeError):
    """The hook cannot be used. The message names the import path and a remedy."""


def load_hook(path: str) -> Hook:
    """The function at `package.module:function`. Raises `HookError`."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # noqa: BLE001 - a module raises whatever it likes while it is imported
        raise HookError(
            f"routing.feedback.hook: importing {module} failed ({type(error).__name__}); put it on the Python path of the "
            "cluster, or set the hook to null"
        ) from None
    if not callable(found):
        raise HookError(f"routing.feedback.hook: {module} has no function {name}; correct the path, or set it to null")
    hook: Hook = found
    return hook


def judge_with(hook: Hook, question: str, answer: str) -> Verdict:
    """What the hook says, as a verdict under its own name. Never raises: a hook that does has verified nothing."""
    try:
        said = hook(question, answer)
    except Exception as error:  # noqa: BLE001 - the hook is the operator's own code
        return Verdict(False, NAME, f"the hook raised {type(error).__name__}")
    if isinstance(said, Verdict):
        return Verdict(said.ok, NAME, said.reason, said.score)
    return Verdict(bool(said), NAME, "the hook takes the answer" if said else "the hook does not take the answer")
