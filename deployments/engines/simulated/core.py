"""The simulated engine's scheduler: continuous batching over a block pool, without I/O and without a clock.

It follows vLLM's V1 scheduler: running sequences first, one token each; then chunks of waiting prompts within the
token budget; when blocks run out, the sequence admitted last gives up its blocks and is recomputed later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from deployments.engines.simulated.blocks import BlockPool
from deployments.engines.simulated.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Costs:
    """What a step takes. A step costs its base, plus its decoding sequences, plus its prompt tokens."""

    prefill_tokens_per_s: float
    decode_step_base_s: float
    decode_step_per_seq_s: float

    def step_s(self, decoding: int, prompt_tokens: int) -> float:
        """Seconds that a step takes with so many decoding sequences and prompt tokens."""
        return (
            self.decode_step_base_s + decoding * self.decode_step_per_seq_s + prompt_tokens / self.prefill_tokens_per_s
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the engine holds at once."""

    kv_blocks: int
    kv_block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One scheduled step: how long it takes, and how many tokens of which sequences it computes."""

    duration_s: float
    work: tuple[tuple[Sequence, int], ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """One token that a step made."""

    key: str
    index: int
    """0 for a sequence's first generated token."""
    token: int
    finished: bool


@dataclass(slots=True)
class Counters:
    """Totals since start."""

    preemptions: int = 0
    """For want of blocks."""
    forced_preemptions: int = 0
    """By changes of the pool."""
    recomputed_tokens: int = 0
    """Tokens computed again after a preemption."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Scheduler:
    """Call `begin`, let the step's time pass, call `finish`; sequences may come and go in between."""

    def __init__(self, bounds: Bounds, costs: Costs) -> None:
        self._bounds = bounds
        self._costs = costs
        self.pool = BlockPool(bounds.kv_blocks)
        self.counters = Counters()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._live: dict[str, Sequence] = {}

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    def fits(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether such a sequence fits the pool when it is alone. The last token made needs no room."""
        return prompt_tokens + new_tokens - 1 <= self._bounds.kv_blocks * self._bounds.kv_block_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `ValueError` for a key in use and for one that could never finish."""
        if sequence.key in self._live:
            raise ValueError(f"a sequence named {sequence.key!r} is here already")
        if not self.fits(len(sequence.tokens), sequence.limit):
            raise ValueError("the sequence is larger than the whole KV cache")
        self._live[sequence.key] = sequence
        self._waiting.append(sequence)

    def cancel(self, key: str) -> bool:
        """Forget a sequence and free its blocks at once, also in the middle of a step. False if it is not here."""
        sequence = self._live.pop(key, None)
        if sequence is None:
            return False
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._free(sequence)
        return True

    def rebuild(self, kv_blocks: int) -> tuple[int, int]:
        """Start over with an empty pool of another size; what ran waits, in its order, and is computed again.

        Returns the sequences that ran, and the tokens of theirs that were computed. Also in the middle of a step.
        """
        preempted, tokens = len(self._running), sum(sequence.computed for sequence in self._running)
        for sequence in reversed(tuple(self._running)):
            self._put_back(sequence)
            sequence.forced += 1
        self.counters.forced_preemptions += preempted
        self.pool = BlockPool(kv_blocks)
        return preempted, tokens

    def begin(self) -> Step | None:
        """Schedule the next step; None when there is nothing to do."""
        work: dict[str, tuple[Sequence, int]] = {}
        budget = self._bounds.max_num_batched_tokens
        preempted = False
        for sequence in tuple(self._running):
            if budget == 0 or sequence not in self._running:
                continue
            tokens = min(sequence.pending, budget)
            before = self.counters.preemptions
            held = self._grow(sequence, tokens)
            preempted = preempted or self.counters.preemptions > before
            if held:
                work[sequence.key] = (sequence, tokens)
                budget -= tokens
        while not preempted and budget > 0 and self._waiting and len(self._running) < self._bounds.max_num_seqs:
            sequence = self._waiting[0]
            tokens = self._admit(sequence, budget)
            if tokens == 0:
                break
            self._running.append(self._waiting.popleft())
            work[sequence.key] = (sequence, tokens)
            budget -= tokens
        if not work:
            return None
        decoding = sum(1 for sequence, _ in work.values() if sequence.decoding)
        prompt = sum(tokens for sequence, tokens in work.values() if not sequence.decoding)
        return Step(self._costs.step_s(decoding, prompt), tuple(work.values()))

    def finish(self, step: Step) -> tuple[Generated, ...]:
        """Take in a step whose time has passed; returns the tokens it made, in batch order."""
        made = []
        for sequence, tokens in step.work:
            # One that lost its blocks in the middle of the step computed for nothing.
            if self._live.get(sequence.key) is not sequence or not sequence.blocks:
                continue
            if not sequence.decoding:
                self.counters.prompt_tokens += tokens
            sequence.advance(tokens)
            self._label(sequence)
            if sequence.pending:
                continue
            token = sequence.append()
            self.counters.generated_tokens += 1
            made.append(Generated(sequence.key, sequence.generated - 1, token, sequence.finished))
            if sequence.finished:
                del self._live[sequence.key]
                self._running.remove(sequence)
                self._free(sequence)
        return tuple(made)

    def faults(self) -> list[str]:
        """What is wrong with the books; empty when all is well."""
        found = self.pool.faults()
        held = {block for sequence in self._running for block in sequence.blocks}
        if len(held) != self.pool.in_use:
            found.append(f"sequences hold {len(held)} blocks, the pool says {self.pool.in_use}")
        if len(self._live) != len(self._running) + len(self._waiting):
            found.append("a sequence is neither running nor waiting")
        found += [f"{sequence.key} waits and holds blocks" for sequence in self._waiting if sequence.blocks]
        return found

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Blocks for a waiting sequence; the tokens that the step computes of it, 0 if there is no room."""
        size = self._bounds.kv_block_tokens
        shared: list[int] = []
        reads = self._bounds.prefix_caching and sequence.reads_cache
        if reads:
            # The last token is always computed: its output is what the next token is made from.
            shared = self.pool.find(sequence.full_block_keys(size, len(sequence.tokens) - 1))
        found = len(shared) * size
        tokens = min(len(sequence.tokens) - found, budget)
        blocks = self.pool.take(shared, _blocks(found + tokens, size) - len(shared))
        if blocks is None:
            return 0
        sequence.blocks = blocks
        sequence.computed = found
        if sequence.lost:
            self.counters.recomputed_tokens += max(0, sequence.lost - found)
            sequence.recomputed += max(0, sequence.lost - found)
            sequence.lost = 0
        if reads:
            self.counters.prefix_queries += len(sequence.tokens)
            self.counters.prefix_hits += found
        if sequence.cached is None:
            sequence.cached = found
        return tokens

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for more tokens of a running sequence; False if it had to give way itself.

        Whoever was admitted last gives way first. That one is not part of the step yet, since a step is filled in the
        order of admission.
        """
        needed = _blocks(sequence.computed + tokens, self._bounds.kv_block_tokens) - len(sequence.blocks)
        while needed > 0:
            blocks = self.pool.take((), needed)
            if blocks is not None:
                sequence.blocks.extend(blocks)
                break
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._put_back(sequence)
        self.counters.preemptions += 1

    def _put_back(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        sequence.lost, sequence.computed = sequence.computed, 0
        sequence.preemptions += 1
        self._waiting.appendleft(sequence)

    def _label(self, sequence: Sequence) -> None:
        if self._bounds.prefix_caching:
            keys = sequence.full_block_keys(self._bounds.kv_block_tokens, sequence.computed)
            for block, key in zip(sequence.blocks, keys, strict=False):
                self.pool.label(block, key)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)
