"""Which pool of experts holds what: the map that an engine without experts of its own (a trunk) works by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_POOLS: Final = 256
MAX_REPLICAS: Final = 64
"""Replicas of one pool."""
MAX_LAYERS: Final = 1024
MAX_EXPERTS: Final = 4096
"""Experts of one layer."""
MAX_MAP_BYTES: Final = 16 * 2**20
"""Of a map as JSON."""

_POOL_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
"""It is the name of a file, too (`deployments.experts.parked`)."""
_ADDRESS: Final = re.compile(r"unix:/.{1,100}|tcp:\[?[A-Za-z0-9.:-]{1,253}\]?:[0-9]{1,5}")

Holding = Mapping[int, frozenset[int]]
"""Layer to experts."""


class PoolMapError(ValueError):
    """A pool map that cannot be worked by; the message says why."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a pool."""

    name: str
    address: str
    """`unix:/path/of/socket` on the same machine, `tcp:host:port` from another one."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that hold the same experts."""

    name: str
    replicas: tuple[Replica, ...]
    """None: the pool is parked, and gets one when it is asked for."""
    holds: Holding


@dataclass(frozen=True, slots=True)
class PoolMap:
    """All pools of a model. A pair of layer and expert may be in several of them."""

    version: int
    """Grows with each map that takes the place of another."""
    pools: tuple[Pool, ...]

    def missing(self, layers: Iterable[int], experts: int) -> list[tuple[int, int]]:
        """Pairs (layer, expert) that no pool holds, of the given layers with so many experts each."""
        lacking = []
        for layer in layers:
            held = frozenset[int]().union(*(pool.holds.get(layer, frozenset()) for pool in self.pools))
            lacking += [(layer, expert) for expert in range(experts) if expert not in held]
        return lacking

    def require(self, layers: Iterable[int], experts: int) -> None:
        """Raises `PoolMapError` naming pairs that no pool holds, or that the model does not have."""
        known = frozenset(layers)
        lacking = self.missing(sorted(known), experts)
        if lacking:
            shown = ", ".join(f"layer {layer} expert {expert}" for layer, expert in lacking[:5])
            raise PoolMapError(f"no pool holds {shown}" + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""))
        for pool in self.pools:
            for layer, held in pool.holds.items():
                if layer not in known or max(held, default=0) >= experts:
                    raise PoolMapError(
                        f"pool {pool.name!r} holds experts of layer {layer} that the model does not have "
                        f"(it has {experts} experts in each of {len(known)} layers)"
                    )

    def to_json(self) -> str:
        """The map as JSON; `parse_pool_map` reads it."""
        return json.dumps(
            {
                "version": self.version,
                "pools": [
                    {
                        "name": pool.name,
                        "replicas": [{"name": replica.name, "address": replica.address} for replica in pool.replicas],
                        "holds": holding_to_json(pool.holds),
                    }
                    for pool in self.pools
                ],
            }
        )


def holding_to_json(holds: Holding) -> dict[str, list[int]]:
    """A holding in a form that JSON has."""
    return {str(layer): sorted(experts) for layer, experts in sorted(holds.items())}


def parse_holding(value: object, of: str = "a pool") -> dict[int, frozenset[int]]:
    """Reads `holding_to_json`. Raises `PoolMapError`, which speaks of it as `of`."""
    if not isinstance(value, dict) or len(value) > MAX_LAYERS:
        raise PoolMapError(f"{of} has to hold an object of at most {MAX_LAYERS} layers")
    holds = {}
    for layer, experts in value.items():
        if not (isinstance(layer, str) and layer.isascii() and layer.isdecimal() and int(layer) < MAX_LAYERS):
            raise PoolMapError(f"{of} holds a layer {layer!r}, which is no number below {MAX_LAYERS}")
        if not isinstance(experts, list) or not all(_is_index(expert, MAX_EXPERTS) for expert in experts):
            raise PoolMapError(f"{of} has to hold a list of expert numbers below {MAX_EXPERTS} in layer {layer}")
        if experts:
            holds[int(layer)] = frozenset(experts)
    if not holds:
        raise PoolMapError(f"{of} holds no expert")
    return holds


def parse_pool_map(text: str | bytes) -> PoolMap:
    """Reads `PoolMap.to_json`. Raises `PoolMapError` for anything else."""
    if len(text) > MAX_MAP_BYTES:
        raise PoolMapError(f"the pool map is longer than {MAX_MAP_BYTES} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PoolMapError(f"the pool map is no JSON: {error}") from None
    if not isinstance(value, dict) or not _is_index(value.get("version"), 2**53):
        raise PoolMapError("the pool map needs a version, a number from 0 on")
    pools = value.get("pools")
    if not isinstance(pools, list) or not 1 <= len(pools) <= MAX_POOLS:
        raise PoolMapError(f"the pool map needs 1 to {MAX_POOLS} pools")
    parsed = tuple(_pool(pool) for pool in pools)
    _refuse_twice("pool", [pool.name for pool in parsed])
    _refuse_twice("replica", [replica.name for pool in parsed for replica in pool.replicas])
    _refuse_twice("address", [replica.address for pool in parsed for replica in pool.replicas])
    return PoolMap(value["version"], parsed)


def split_evenly(layers: Iterable[int], experts: int, pools: int) -> list[dict[int, frozenset[int]]]:
    """Holdings of so many pools that share out the experts of every layer in turn, as evenly as possible."""
    if not 1 <= pools <= experts:
        raise PoolMapError(f"{experts} experts cannot be shared out among {pools} pools")
    layers = list(layers)
    return [{layer: frozenset(range(pool, experts, pools)) for layer in layers} for pool in range(pools)]


def _pool(value: object) -> Pool:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or not _POOL_NAME.fullmatch(name):
        raise PoolMapError(
            "every pool needs a name of 1 to 128 letters, digits and _ . -, which does not begin with a dot"
        )
    replicas = value.get("replicas")
    if not isinstance(replicas, list) or len(replicas) > MAX_REPLICAS:
        raise PoolMapError(f"pool {name!r} needs a list of at most {MAX_REPLICAS} replicas")
    return Pool(
        name,
        tuple(_replica(replica, name) for replica in replicas),
        parse_holding(value.get("holds"), f"pool {name!r}"),
    )


def _replica(value: object, pool: str) -> Replica:
    if not isinstance(value, dict) or not _is_name(value.get("name")):
        raise PoolMapError(f"every replica of pool {pool!r} needs a name of 1 to 128 characters")
    address = value.get("address")
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise PoolMapError(f"replica {value['name']!r} needs an address, unix:/path or tcp:host:port")
    return Replica(value["name"], address)


def _refuse_twice(what: str, names: list[str]) -> None:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise PoolMapError(f"{what} {name!r} is in the pool map twice")
        seen.add(name)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 128


def _is_index(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
