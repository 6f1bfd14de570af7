"""What is simulated: the model, the nodes, what work costs, and what traffic comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cluster.config.experts import ExpertsConfig
from cluster.experts.load import ExpertShape

WARM_UP_S: Final = 40.0
"""Seconds of even traffic before anything is measured: the heat settles."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Traffic for a time."""

    seconds: float
    kind: str | None
    """The kind that most of it is of; None: all alike."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All settings. Times of work are assumptions, the same in all arms; see docs/loadtests.md."""

    shape: ExpertShape = field(default_factory=lambda: ExpertShape(58, 256, 8))
    """As DeepSeek-V3 (arXiv:2412.19437): 58 sparse layers of 256 experts, 8 for each token."""
    pair_bytes: int = 3 * 7168 * 2048
    """Weights of one expert of it, in 8 bits."""
    nodes: int = 192
    """Nodes for experts; each holds one replica of a pool. 8 more run the trunks."""
    slots: int = 4
    """Experts in each layer that a node has memory for."""
    trunks: int = 6
    batch: int = 16_384
    """Sequences that a trunk, some nodes with the attention of all of them, runs at once."""
    trunk_s: float = 200e-6
    """Attention, router and shared expert of a layer."""
    hand_over_s: float = 100e-6
    """To the pools and back, each layer."""
    fixed_s: float = 52e-6
    """A replica's time for a batch, however few rows it has: four experts' weights from memory at 3.35 TB/s (H100)."""
    row_s: float = 0.6e-6
    """For each row of a batch: 7 KiB in (8 bits) and 14 KiB out (16 bits) at 50 GB/s, and 88 MFLOP at 600 TFLOP/s."""
    load_bytes_per_s: float = 5e9
    """At which a node reads weights from the others: a tenth of its network."""
    start_s: float = 2.0
    """A replica's start, besides its weights."""
    tokens: float = 200.0
    """Mean length of an answer; log-normal with `spread`."""
    spread: float = 0.5
    deadline_s: float = 120.0
    """After which a request is cut off."""
    concentration: float = 0.9
    """Share of the traffic that is of a phase's kind."""
    phases: tuple[Phase, ...] = (
        Phase(WARM_UP_S, None),
        Phase(60.0, "story"),
        Phase(60.0, "questions"),
        Phase(40.0, "code"),
    )

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def copies(self) -> int:
        """Of the whole model that the nodes have memory for."""
        return self.nodes * self.slots // self.shape.experts

    @property
    def ideal_tokens_per_s(self) -> float:
        """Tokens a second at which the nodes would be busy all the time, if rows were spread evenly and batches cost nothing."""
        return self.nodes / (self.row_s * self.shape.layers * self.shape.top_k)

    @property
    def node_pairs(self) -> int:
        """Pairs of layer and expert that a node holds."""
        return self.shape.layers * self.slots


HEAT: Final = ExpertsConfig(half_life_s=10.0, dwell_s=5.0)
"""The meter's settings: quicker than the default, as a cluster of this size has many tokens to measure by."""
