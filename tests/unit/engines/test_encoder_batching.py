from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from deployments.engines.encoder_batching import MicroBatcher, QueueFullError, Vectors
from tests.waiting import until


@dataclass
class Encoder:
    """Each text's vector is its number; a text of words fails."""

    batches: list[list[str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    threads: set[int] = field(default_factory=set)

    def encode(self, texts: list[str]) -> tuple[Vectors, list[int]]:
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append(texts)
        return np.array([[float(text)] for text in texts], dtype=np.float32), [len(text) for text in texts]


@pytest.fixture
def encoder() -> Encoder:
    made = Encoder()
    made.gate.set()
    return made


@pytest.fixture
async def batcher(encoder: Encoder) -> AsyncIterator[MicroBatcher]:
    with ThreadPoolExecutor(1) as pool:
        made = MicroBatcher(encoder.encode, 4, 10, pool)
        yield made
        encoder.gate.set()
        await made.close()


async def test_everyone_gets_their_own(batcher: MicroBatcher, encoder: Encoder) -> None:
    answers = await asyncio.gather(*(batcher.submit([str(n), str(n * 10)]) for n in range(5)))
    for number, (vectors, counts) in enumerate(answers):
        assert vectors.tolist() == [[number], [number * 10]]
        assert counts == [len(str(number)), len(str(number * 10))]
    assert [len(batch) for batch in encoder.batches] == [4, 4, 2]
    assert len(encoder.threads) == 1
    assert (batcher.running, batcher.waiting) == (0, 0)


async def test_what_waits_while_the_thread_works_goes_together(batcher: MicroBatcher, encoder: Encoder) -> None:
    encoder.gate.clear()
    first = asyncio.create_task(batcher.submit(["1"]))
    await until(lambda: batcher.running == 1)
    rest = [asyncio.create_task(batcher.submit([str(n)])) for n in (2, 3, 4)]
    await until(lambda: batcher.waiting == 3)
    encoder.gate.set()
    await asyncio.gather(first, *rest)
    assert encoder.batches == [["1"], ["2", "3", "4"]]


async def test_the_queue_is_bounded(batcher: MicroBatcher, encoder: Encoder) -> None:
    encoder.gate.clear()
    first = asyncio.create_task(batcher.submit(["1"]))
    await until(lambda: batcher.running == 1)
    waiting = asyncio.create_task(batcher.submit(["2"] * 10))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="10 texts"):
        await batcher.submit(["3"])
    encoder.gate.set()
    await asyncio.gather(first, waiting)


async def test_cancelled_texts_are_not_encoded(batcher: MicroBatcher, encoder: Encoder) -> None:
    encoder.gate.clear()
    first = asyncio.create_task(batcher.submit(["1"]))
    await until(lambda: batcher.running == 1)
    gone, stays = (asyncio.create_task(batcher.submit([text] * 3)) for text in ("2", "3"))
    await until(lambda: batcher.waiting == 2)
    gone.cancel()
    first.cancel()
    await asyncio.gather(gone, first, return_exceptions=True)
    encoder.gate.set()
    await stays
    assert encoder.batches == [["1"], ["3", "3", "3"]]


async def test_a_failure_is_the_answer_of_its_batch_alone(batcher: MicroBatcher) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        await batcher.submit(["words"])
    vectors, _ = await batcher.submit(["7"])
    assert vectors.tolist() == [[7.0]]


async def test_closing_fails_what_waits(batcher: MicroBatcher, encoder: Encoder) -> None:
    encoder.gate.clear()
    tasks = [asyncio.create_task(batcher.submit([str(n)] * 4)) for n in range(2)]
    await until(lambda: batcher.running == 1)
    await batcher.close()
    encoder.gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
