from __future__ import annotations

from deployments.head.reasons import short

TRACE = "The deployment failed to start 2 times in a row.\nTraceback ...\nValueError: x\n\nThe above exception ...\n"


def test_an_engine_is_quoted_from_its_beginning() -> None:
    said = "model 'm' could not start: architecture `no_such_model` is unknown.\n" + "Advice. " * 500
    told = short(f"{TRACE}deployments.engines.protocol.EngineStartError: {said}")
    assert told.startswith("model 'm' could not start: architecture `no_such_model` is unknown.")
    assert told.endswith(" …")
    assert len(told) <= 602
    assert short(f"{TRACE}deployments.engines.protocol.EngineStartError: model 'm' has no checkpoint") == (
        "model 'm' has no checkpoint"
    )


def test_of_anything_else_the_end_is_told() -> None:
    assert short("  It failed. ") == "It failed."
    told = short("Traceback. " * 200 + "RuntimeError: the cause")
    assert told.startswith("… ")
    assert told.endswith("RuntimeError: the cause")
