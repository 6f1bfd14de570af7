"""What the simulated engine tells of experts: real counts of made-up routes."""

from __future__ import annotations

from collections.abc import Sequence as Several

from cluster.config.engine import SimulatedExperts
from cluster.experts.heat import MAX_TRAFFIC
from cluster.experts.load import Counts, ExpertLoad, ExpertLog, ExpertUse, packed, used
from deployments.engines.protocol import EngineRequest
from deployments.engines.simulated.routing import Router, fitting_id
from deployments.engines.simulated.sequence import Sequence


class Experts:
    """The counts of one engine. Tokens wait on a tape per request and are routed many at once, when somebody asks."""

    def __init__(self, config: SimulatedExperts, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._routers = {"": Router(config, seed, "")}
        self.shape = self._routers[""].shape
        self._total = self.shape.zeros()
        self._by_traffic: dict[str, Counts] = {}
        self._open: set[RequestExperts] = set()

    def begin(self, sequences: Several[Sequence], request: EngineRequest) -> RequestExperts:
        """Follow the sequences of a request. If their experts are to be listed, all of their tokens are computed."""
        traffic = request.traffic
        # The unknown kind has a router from the start, so one place is its own.
        if traffic not in self._routers and len(self._routers) >= MAX_TRAFFIC:
            traffic = ""
        if traffic not in self._routers:
            self._routers[traffic] = Router(self._config, self._seed, traffic)
        followed = RequestExperts(self, self._routers[traffic], traffic, sequences, request.log_experts)
        self._open.add(followed)
        return followed

    def load(self) -> ExpertLoad:
        """All tokens computed until now; by traffic those of requests that ended."""
        for request in self._open:
            request.route()
        by_traffic = {name: packed(counts) for name, counts in self._by_traffic.items()}
        return ExpertLoad(self.shape, packed(self._total), by_traffic)

    def count(self, counts: Counts) -> None:
        """Tokens (layers, experts) that were routed."""
        self._total += counts

    def close(self, request: RequestExperts, traffic: str, counts: Counts) -> None:
        """A request ended for which so many tokens (layers, experts) were computed."""
        self._open.discard(request)
        self._by_traffic[traffic] = self._by_traffic.get(traffic, 0) + counts


class RequestExperts:
    """The experts of one request."""

    def __init__(
        self, experts: Experts, router: Router, traffic: str, sequences: Several[Sequence], log_tokens: int
    ) -> None:
        self._experts = experts
        self.router = router
        self._traffic = traffic
        self._sequences = sequences
        self._log_tokens = log_tokens
        self._tape: list[int] = []
        self._counts: Counts | None = None
        for sequence in sequences:
            sequence.tape = self._tape
            sequence.reads_cache = not log_tokens

    def route(self) -> None:
        """Count what was computed since the last time."""
        if self._tape:
            counts = self.router.counts(self._tape)
            self._tape.clear()
            self._experts.count(counts)
            self._counts = counts if self._counts is None else self._counts + counts

    def end(self) -> ExpertUse:
        """It ended, or was cancelled: which experts it used."""
        self.route()
        counts = self.router.shape.zeros() if self._counts is None else self._counts
        self._experts.close(self, self._traffic, counts)
        logs = tuple(map(self._log, self._sequences)) if self._log_tokens else ()
        return used(counts, self.router.shape, logs)

    def _log(self, sequence: Sequence) -> ExpertLog:
        """Its last token was made, but never went through the model."""
        kept = sequence.tokens[: min(self._log_tokens, sequence.computed)]
        return ExpertLog(tuple(map(fitting_id, kept)), self.router.experts(kept), sequence.computed - len(kept))
