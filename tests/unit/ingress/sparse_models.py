"""A config with sparse models, replicas that tell of experts, and what they tell."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np

from cluster.config.cluster import ClusterConfig
from cluster.experts.load import Counts, ExpertLoad, ExpertLog, ExpertShape, ExpertUse, packed, used
from deployments.channel.messages import Hello
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from tests.unit.ingress.ladders import Connected

SHAPE = ExpertShape(layers=2, experts=4, top_k=2)


def config(**experts: Any) -> ClusterConfig:
    engine = {"type": "simulated", "max_model_len": 512}
    sparse = {"kind": "sparse", "roles": ["code"], "source": "embedded:sparse", "engine": engine}
    dense = {"kind": "dense", "roles": ["strong", "fast"], "source": "embedded:dense", "engine": engine}
    return ClusterConfig.model_validate(
        {
            "models": {"big": dense, "moe": sparse, "mute": {**sparse, "roles": ["other"]}},
            "routing": {"code_role": "strong"},
            "experts": {"half_life_s": 10, "dwell_s": 2, "min_tokens": 10, **experts},
        }
    )


def join(channel: ChannelReceiver, name: str, model: str = "moe", blockers: tuple[str, ...] = ()) -> AttachedReplica:
    """Attach a replica."""
    hello = Hello("s", name, model, "simulated", 1, (), expert_blockers=blockers)
    replica = AttachedReplica(hello, cast("asyncio.StreamWriter", Connected()), asyncio.get_running_loop().time())
    channel._replicas[name] = replica
    return replica


def counts(*hot: tuple[int, int, int], shape: ExpertShape = SHAPE, even: int = 0) -> Counts:
    """`even` tokens at each pair of layer and expert, and more at the hot ones: layer, expert, tokens."""
    made = np.full((shape.layers, shape.experts), even, np.int64)
    for layer, expert, tokens in hot:
        made[layer, expert] += tokens
    return made


def load(total: Counts, shape: ExpertShape = SHAPE, **by_traffic: Counts) -> ExpertLoad:
    """What a replica tells."""
    return ExpertLoad(shape, packed(total), {name: packed(part) for name, part in by_traffic.items()})


def use(*hot: tuple[int, int, int], even: int = 1, tokens: tuple[int, ...] = ()) -> ExpertUse:
    """What a request used; with a list of the experts of `tokens`, which all went to 0 and 1."""
    logs = ()
    if tokens:
        experts = np.tile(np.array([0, 1], "<u2"), (len(tokens), SHAPE.layers, 1))
        logs = (ExpertLog(tokens, experts.tobytes(), 3),)
    return used(counts(*hot, even=even), SHAPE, logs)
