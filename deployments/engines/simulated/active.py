"""A request while the simulated engine works on it."""

from __future__ import annotations

import asyncio
from zlib import crc32

from deployments.engines.kv_precision import KvUse
from deployments.engines.protocol import Emit, EngineReply, TokenUsage
from deployments.engines.simulated.core import Generated
from deployments.engines.simulated.pretence import Pretence
from deployments.engines.simulated.requests import Work
from deployments.engines.simulated.responses import Choice, Writer
from deployments.engines.simulated.sequence import Sequence
from deployments.engines.simulated.text import Answer, word_of


class Active:
    """Turns the tokens of a request's sequences into events or into one body."""

    def __init__(
        self,
        key: str,
        work: Work,
        writer: Writer,
        emit: Emit | None,
        tenant: str = "",
        pretence: Pretence | None = None,
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        salt = crc32(tenant.encode())
        self.sequences = tuple(
            Sequence(f"{key}:{at * work.choices + choice}", prompt, work.limit, seed, salt)
            for at, prompt in enumerate(work.prompts)
            for choice, seed in enumerate(work.seeds)
        )
        self._index = {sequence.key: index for index, sequence in enumerate(self.sequences)}
        self._work = work
        self._writer = writer
        self._emit = emit
        self._pretence = pretence
        self._answers = [Answer(work.stop) for _ in self.sequences]
        self._texts: list[list[str]] = [[] for _ in self.sequences]
        self._reasons: list[str | None] = [None for _ in self.sequences]

    def take(self, made: Generated) -> bool:
        """Take in a token; True if it ended its choice before the limit."""
        index = self._index[made.key]
        answer = self._answers[index]
        text = answer.push(word_of(made.token, first=made.index == 0))
        if answer.stopped:
            self._reasons[index] = "stop"
        elif made.finished:
            self._reasons[index] = self._work.ends
            text += answer.rest()
        if self._pretence is not None and index == 0:
            self._pretence.add(made.token)
        if self._emit is None:
            self._texts[index].append(text)
        else:
            self._stream(self._emit, index, text, first=made.index == 0)
            if self._pretence is not None and (early := self._pretence.early()) is not None:
                self._emit(early)
        if all(reason is not None for reason in self._reasons) and not self.ended.done():
            self.ended.set_result(None)
        return answer.stopped and not made.finished

    def reply(self) -> EngineReply:
        """How the request ended; call it once `ended` is done."""
        usage = self._usage()
        reason = self._reasons[0]
        if self._emit is not None:
            if self._work.include_usage:
                self._emit(self._writer.usage(usage))
            return EngineReply(status=200, usage=usage, finish_reason=reason)
        choices = [
            Choice("".join(texts), reason or self._work.ends)
            for texts, reason in zip(self._texts, self._reasons, strict=True)
        ]
        return EngineReply(status=200, body=self._writer.whole(choices, usage), usage=usage, finish_reason=reason)

    def kv_use(self, precision: str) -> KvUse:
        """What it met in the simulated KV cache."""
        return KvUse(
            precision,
            sum(sequence.preemptions for sequence in self.sequences),
            sum(sequence.forced for sequence in self.sequences),
            sum(sequence.recomputed for sequence in self.sequences),
        )

    def _stream(self, emit: Emit, index: int, text: str, *, first: bool) -> None:
        if first and (opening := self._writer.opening(index)):
            emit(opening)
        if text or self._reasons[index] is not None:
            emit(self._writer.piece(index, text, self._reasons[index]))

    def _usage(self) -> TokenUsage:
        return TokenUsage(
            prompt_tokens=sum(map(len, self._work.prompts)),
            completion_tokens=sum(sequence.generated for sequence in self.sequences),
            cached_tokens=sum(sequence.cached or 0 for sequence in self.sequences),
        )
