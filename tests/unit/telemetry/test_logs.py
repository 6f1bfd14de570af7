from __future__ import annotations

import enum
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from deployments.telemetry.log_files import BoundedLogFile, prune_directory
from deployments.telemetry.log_format import SafeFormatter, log_event
from deployments.telemetry.log_safety import MAX_CAUSES, MAX_MESSAGE_CHARS, Safe, safe_exception
from deployments.telemetry.logs import Logs, QueueingHandler, setup_logging

CANARY = "CANARY7f3a"
PROMPT = f"Tell me about {CANARY} please"

ours = logging.getLogger("deployments.somewhere")
theirs = logging.getLogger("vllm.engine")


class Colour(enum.Enum):
    RED = CANARY


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(CANARY)

    __repr__ = __str__


class Odd:
    def __repr__(self) -> str:
        return CANARY

    __str__ = __repr__


@pytest.fixture
def logs(tmp_path) -> Iterator[Logs]:
    root, level = logging.getLogger(), logging.getLogger().level
    made = setup_logging("ingress", tmp_path / "logs", level="debug")
    yield made
    made.close()
    root.setLevel(level)


def lines(logs: Logs) -> list[dict[str, object]]:
    assert logs.flush(5)
    if not logs.path.exists():
        return []
    return [json.loads(line) for line in logs.path.read_text().splitlines()]


def test_an_event_has_its_fields_and_the_current_trace(logs):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        log_event(
            ours, logging.INFO, "request_done", model="dense", status=200, seconds=1.5, streamed=True, reason=None
        )
    (line,) = lines(logs)
    context = span.get_span_context()
    assert line["message"] == "request_done"
    assert line["logger"] == "deployments.somewhere"
    assert (line["level"], line["process"]) == ("info", "ingress")
    assert (line["trace_id"], line["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert (line["model"], line["status"], line["seconds"], line["streamed"]) == ("dense", 200, 1.5, True)
    assert str(line["time"]).endswith("Z")


def test_plain_log_calls_of_ours_keep_template_and_identifiers(logs):
    ours.warning(
        "replica %s gave up after %d tries, %.2f s", Safe("d-1"), 3, 1.234, extra={"request_id": "r-1", "x": PROMPT}
    )
    (line,) = lines(logs)
    assert line["message"] == "replica d-1 gave up after 3 tries, 1.23 s"
    assert line["request_id"] == "r-1"
    assert "x" not in line


def write_canaries() -> None:
    """Every way in which a prompt may get into a log call."""
    for logger in (
        ours,
        theirs,
        logging.getLogger(),
        logging.getLogger("uvicorn.access"),
        logging.getLogger("ray.serve"),
    ):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
            logger.log(level, f"Received request: {PROMPT}")  # noqa: G004 - what libraries do
            logger.log(level, PROMPT)
            logger.log(level, "Received request: prompt=%r params=%s", PROMPT, {"a": PROMPT})
            logger.log(level, "%(prompt)s", {"prompt": PROMPT})
            logger.log(level, "%s %s %s", [PROMPT], PROMPT.encode(), Odd())
            logger.log(level, "%-40s|%.30s|%*d", PROMPT, PROMPT, 5, 3)
            logger.log(level, Odd())
            logger.log(level, "one word: %s", CANARY)
            logger.log(level, "too few %s %s", CANARY)
            logger.log(level, "bad format %d %q", CANARY)
            logger.log(level, "done", extra={"prompt": PROMPT, "model": PROMPT, "request_id": f"a {PROMPT}"})
            logger.log(level, "colour %s", Colour.RED)
            logger.log(level, "error %s", ValueError(PROMPT))
        try:
            try:
                raise KeyError(PROMPT)
            except KeyError as error:
                raise ValueError(f"could not parse {PROMPT}") from error
        except ValueError:
            logger.exception("request failed")
            logger.exception(f"request failed for {PROMPT}")  # noqa: G004 - what libraries do
        try:
            raise OddError
        except OddError:
            logger.exception("odd")
    log_event(ours, logging.INFO, PROMPT, prompt=PROMPT, text=CANARY, model=PROMPT)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn(PROMPT, stacklevel=1)
        logging.captureWarnings(False)


def test_no_prompt_gets_into_a_log_line(logs, monkeypatch):
    root = logging.getLogger()
    # pytest's own handlers choke on the malformed calls that are made here on purpose.
    monkeypatch.setattr(root, "handlers", [each for each in root.handlers if isinstance(each, QueueingHandler)])
    # Some other test may have imported Ray, which gives its loggers handlers of their own.
    logs.adopt_libraries()
    write_canaries()
    text = json.dumps(lines(logs))
    # Four of the five loggers: uvicorn.access is not heard at all.
    assert text.count("request failed") == 4
    assert CANARY not in text
    assert "about" not in text


def test_a_withheld_text_says_where_it_is(logs):
    theirs.error(f"could not handle {PROMPT}")
    theirs.info(f"handled {PROMPT}")
    (line,) = lines(logs)
    assert str(line["message"]).startswith("(text withheld, test_logs:")


def test_an_exception_keeps_types_causes_and_positions(logs):
    try:
        try:
            raise FileNotFoundError(2, PROMPT)
        except OSError as error:
            raise RuntimeError(PROMPT) from error
    except RuntimeError:
        ours.exception("broken")
    (line,) = lines(logs)
    assert line["exception"][0] == "builtins.RuntimeError"  # type: ignore[index]
    assert "builtins.FileNotFoundError [errno 2]" in line["exception"]  # type: ignore[operator]
    assert "test_logs.py:" in json.dumps(line["exception"])


def test_long_chains_of_causes_and_deep_stacks_are_bounded():
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError(PROMPT)

    error: Exception | None = None
    for _ in range(30):
        try:
            try:
                deep(200)
            except ValueError as inner:
                raise RuntimeError from (error or inner)
        except RuntimeError as outer:
            error = outer
    assert error is not None
    told = safe_exception(error)
    assert sum(not line.startswith("  ") for line in told) == MAX_CAUSES
    assert len(told) < MAX_CAUSES * 45


def test_an_exception_of_ours_may_vouch_for_its_text():
    vouched = type("StartError", (Exception,), {"__module__": "deployments.engines.protocol", "log_safe": True})
    foreign = type("StartError", (Exception,), {"__module__": "elsewhere", "log_safe": True})
    assert safe_exception(vouched("port 8000 is taken"))[0].endswith("StartError: port 8000 is taken")
    assert PROMPT not in safe_exception(foreign(PROMPT))[0]


def test_a_librarys_words_are_written_while_an_engine_starts(logs):
    with logs.library_text():
        theirs.info(f"loading {PROMPT}")
        ours.info(f"ours {PROMPT}")
    theirs.info(f"serving {PROMPT}")
    messages = [str(line["message"]) for line in lines(logs)]
    assert messages[0] == f"loading {PROMPT}"
    assert CANARY not in messages[1]
    assert len(messages) == 2


def test_libraries_own_handlers_are_taken_away(logs):
    stream = io.StringIO()
    library = logging.getLogger("vllm")
    library.addHandler(logging.StreamHandler(stream))
    library.propagate = False
    logs.adopt_libraries(("vllm",))
    theirs.warning("engine is %d%% full", 90)
    assert stream.getvalue() == ""
    assert lines(logs)[0]["message"] == "engine is 90% full"


def test_control_characters_and_long_templates_are_tamed():
    formatter = SafeFormatter("p")
    record = logging.LogRecord("deployments.x", logging.INFO, "f", 1, Safe("a\nb\x1b[31m" + "x" * 9000), None, None)
    line = json.loads(formatter.format(record))
    assert "\x1b" not in line["message"]
    assert len(line["message"]) <= MAX_MESSAGE_CHARS


@settings(deadline=None, max_examples=60)
@given(st.text(), st.lists(st.text() | st.integers() | st.floats() | st.binary() | st.none(), max_size=4))
def test_formatting_never_raises(template, args):
    formatter = SafeFormatter("p")
    record = logging.LogRecord("x", logging.ERROR, "f", 1, template, tuple(args), None)
    assert formatter.format(record).count("\n") == 0


def test_a_log_call_does_not_wait_for_the_disk(tmp_path):
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.3)
            return len(text)

    logs = setup_logging("slow", tmp_path, stream=Slow())
    started = time.perf_counter()
    for number in range(200):
        log_event(ours, logging.WARNING, "tick", number=number)
    assert time.perf_counter() - started < 0.25
    logs.close()
    logging.getLogger().setLevel(logging.WARNING)


def test_a_stream_gets_the_lines_too(tmp_path):
    stream = io.StringIO()
    logs = setup_logging("cli", tmp_path, stream=stream)
    log_event(ours, logging.WARNING, "hello")
    logs.close()
    logging.getLogger().setLevel(logging.WARNING)
    assert json.loads(stream.getvalue())["message"] == "hello"
    assert logs.dropped == 0


def test_a_file_is_begun_anew_at_its_bound(tmp_path):
    file = BoundedLogFile(tmp_path, "Replica:Dense", max_bytes=1000, max_total_bytes=100_000)
    for number in range(100):
        assert file.write([f"{number:050d}"]) == 0
    file.close()
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [
        f"replica-dense-{os.getpid()}.jsonl",
        f"replica-dense-{os.getpid()}.jsonl.1",
    ]
    assert all(part.stat().st_size <= 1000 for part in parts)
    assert parts[0].stat().st_mode & 0o077 == 0
    assert file.path.read_text().splitlines()[-1] == f"{99:050d}"


def test_files_of_ended_processes_leave_first(tmp_path):
    for age, pid in enumerate((os.getpid(), 4_190_001, 4_190_002, 4_190_003)):
        path = tmp_path / f"ingress-{pid}.jsonl"
        path.write_text("x" * 1000)
        os.utime(path, (age, age))
    (tmp_path / "notes.txt").write_text("x" * 10_000)
    prune_directory(tmp_path, 2500)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"ingress-{os.getpid()}.jsonl",
        "ingress-4190003.jsonl",
        "notes.txt",
    }


def test_a_place_that_cannot_be_written_loses_lines_and_counts_them(tmp_path):
    (tmp_path / "file").write_text("")
    logs = setup_logging("ingress", tmp_path / "file" / "logs")
    log_event(ours, logging.WARNING, "lost")
    logs.close()
    logging.getLogger().setLevel(logging.WARNING)
    assert logs.dropped == 1
