"""What a request takes of engines, call by call, while it is under way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from cluster.config.cluster import ClusterConfig
from cluster.cost import EngineUse, RequestCost, cost_of
from cluster.experts.load import ExpertUse
from cluster.records.record import Precision, precision_of
from deployments.channel.stream import TokenStream
from deployments.engines.protocol import TokenUsage


@dataclass(slots=True)
class Call:
    """One answer that was asked of a model. Outlives the answer, and holds nothing of its text."""

    model: str
    prompt_estimate: int
    """Tokens of the prompt, about: what counts as long as the engine has not told."""
    attempts: int = 0
    events: int = 0
    usage: TokenUsage | None = None
    """What the engine told; None: nothing yet."""
    taken: bool = False
    """Whether a replica ever took it."""
    seconds: float = 0.0
    experts: ExpertUse | None = None
    """Which experts it used, without a list of them; None: the engine did not tell."""
    _counted: TokenStream | None = None

    def count(self, stream: TokenStream, attempts: int, events: int) -> None:
        """A replica is done with the call, or it is left: add what this took. Once for each stream."""
        self.attempts, self.events = attempts, events
        if stream is self._counted:
            return
        self._counted = stream
        if stream.reply is not None:
            self.usage = stream.reply.usage
            used = stream.reply.experts
            self.experts = used and replace(used, logs=())
        self.taken = self.taken or stream.replica is not None
        if stream.taken_at is not None:
            ended = time.monotonic() if stream.ended_at is None else stream.ended_at
            self.seconds += max(0.0, ended - stream.taken_at)

    def use(self) -> EngineUse:
        """What it took so far."""
        usage = self.usage
        told = usage is not None
        if usage is None:
            usage = TokenUsage(self.prompt_estimate, self.events) if self.taken else TokenUsage()
        return EngineUse(
            model=self.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            engine_seconds=self.seconds,
            calls=self.attempts,
            estimated=self.taken and not told,
        )


@dataclass(slots=True)
class Account:
    """All calls of one request."""

    config: ClusterConfig
    """The one in force when the request came: its prices hold to the end."""
    calls: list[Call] = field(default_factory=list)

    def cost(self) -> RequestCost:
        """What the request cost so far, by model."""
        return cost_of(self.config, (call.use() for call in self.calls))

    def precision(self, model: str) -> Precision | None:
        """The number formats of a model's engine as far as they are known."""
        return precision_of(self.config, model)
