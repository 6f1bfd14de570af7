"""Checks on the contracts of a config: every promise can be kept, and every fallback leads somewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cluster.config.base import EMBEDDING_ROLE, Kind
from cluster.config.contract import ContractConfig
from cluster.config.mistakes import Mistake

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


def check_contracts(config: ClusterConfig, roles: set[str]) -> Iterator[Mistake]:
    """Mistakes in `contracts`; `roles` are those that some model plays."""
    for role, contract in config.contracts.items():
        path = f"contracts.{role}"
        if role not in roles:
            yield Mistake(path, f"no model has the role {role}", "add it to a model's roles or leave the contract out")
        if contract.latency_target_s > contract.timeout_s:
            yield Mistake(f"{path}.latency_target_s", "this is more than timeout_s", "lower it or raise timeout_s")
        yield from _check_sizes(config, role, contract)
        yield from _check_fallback(config, role, contract, roles)
    yield from _check_cycles(config.contracts)


def _check_sizes(config: ClusterConfig, role: str, contract: ContractConfig) -> Iterator[Mistake]:
    for name in config.models_of(role):
        engine = config.models[name].engine
        if engine.max_model_len is None or config.models[name].kind is Kind.ENCODER:
            continue
        # With a window, older turns leave until the prompt fits, so the completion alone has to.
        if engine.kv_window_tokens is not None:
            if contract.max_completion_tokens >= engine.kv_window_tokens:
                message = f"the completion would fill the window of model {name} ({engine.kv_window_tokens} tokens)"
                yield Mistake(f"contracts.{role}.max_completion_tokens", message, "lower it or raise kv_window_tokens")
        elif contract.max_prompt_tokens + contract.max_completion_tokens > engine.max_model_len:
            message = f"with max_completion_tokens this is more than model {name} holds ({engine.max_model_len} tokens)"
            yield Mistake(f"contracts.{role}.max_prompt_tokens", message, "lower either or raise max_model_len")


def _check_fallback(config: ClusterConfig, role: str, contract: ContractConfig, roles: set[str]) -> Iterator[Mistake]:
    for index, target in enumerate(contract.fallback):
        path = f"contracts.{role}.fallback.{index}"
        if target in contract.fallback[:index]:
            yield Mistake(path, f"{target} stands here twice", "leave one out")
        elif target not in roles and target not in config.models:
            yield Mistake(path, f"{target} is neither a model nor a role of one", "name a model or a role that one has")
        elif _embeds(config, target) != (role == EMBEDDING_ROLE):
            yield Mistake(path, "an encoder cannot stand in for a chat model, nor the reverse", "name another")


def _embeds(config: ClusterConfig, target: str) -> bool:
    model = config.models.get(target)
    return model.kind is Kind.ENCODER if model is not None else target == EMBEDDING_ROLE


def _check_cycles(contracts: Mapping[str, ContractConfig]) -> Iterator[Mistake]:
    for role, contract in contracts.items():
        for index, target in enumerate(contract.fallback):
            if _reaches(contracts, target, role):
                yield Mistake(
                    f"contracts.{role}.fallback.{index}", "this fallback leads back to its own role", "leave it out"
                )


def _reaches(contracts: Mapping[str, ContractConfig], start: str, goal: str) -> bool:
    pending, seen = [start], set[str]()
    while pending:
        role = pending.pop()
        if role == goal:
            return True
        if role not in seen:
            seen.add(role)
            pending.extend(contracts[role].fallback if role in contracts else ())
    return False
