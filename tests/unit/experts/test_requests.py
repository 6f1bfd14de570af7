"""Requests that a pool must not compute, from a trunk that has proved that it knows the secret."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from cluster.experts.pools import Replica
from deployments.experts.link import Link, LinkError, Model
from deployments.experts.weights import Checkpoint
from deployments.experts.wire import FrameKind, Header
from tests.unit.experts.clients import WHOLE, a_batch, answer, client_of
from tests.unit.experts.pool_processes import EXPERTS, HIDDEN, LAYERS, SECRET, expected, map_of, serving, write_experts

ROW = bytes(4 * HIDDEN)


def body(rows: int, places: list[int], experts: list[int]) -> bytes:
    count = len(places)
    return struct.pack(f"<{2 * count}i{count}f", *places, *experts, *[0.5] * count) + rows * ROW


WRONG = {
    "a row that is not there": (Header(0, 1, 0, 1, 2), body(1, [0, 1], [2, 3]), "out of range"),
    "a row before the first": (Header(0, 1, 0, 1, 2), body(1, [0, -1], [2, 3]), "out of range"),
    "an expert beyond the last": (Header(0, 1, 0, 1, 2), body(1, [0, 0], [2, EXPERTS]), "out of range"),
    "an expert before the first": (Header(0, 1, 0, 1, 2), body(1, [0, 0], [-1, 2]), "out of range"),
    "experts in disorder": (Header(0, 1, 0, 1, 2), body(1, [0, 0], [3, 2]), "not sorted"),
    "a layer that is not there": (Header(0, 1, LAYERS, 1, 1), body(1, [0], [0]), "no expert of layer"),
    "fewer pairs than rows": (Header(0, 1, 0, 2, 1), body(2, [0], [0]), "more or fewer"),
    "more pairs than rows have experts": (
        Header(0, 1, 0, 1, EXPERTS + 1),
        body(1, [0] * (EXPERTS + 1), [0] * (EXPERTS + 1)),
        "more or fewer",
    ),
    "no rows": (Header(0, 1, 0, 0, 0), b"", "more or fewer"),
    "a body that is too short": (Header(0, 1, 0, 1, 1), body(1, [0], [0])[:-1], "not as long"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_refused_and_others_are_served(tmp_path: Path, wrong: str) -> None:
    header, content, says = WRONG[wrong]
    tensors = write_experts(tmp_path / "model")
    model = Model(Checkpoint(tmp_path / "model").fingerprint(), "float32", HIDDEN)
    with serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as address:
        link = Link(Replica("a", address), WHOLE, model, SECRET, 5.0)
        whole = header._replace(kind=FrameKind.REQUEST, body=len(content), microseconds=5_000_000)
        link._socket.sendall(whole.pack() + content)
        with pytest.raises(LinkError, match=says):
            link.reply(1)
        link.close()
        client = client_of(map_of((WHOLE, [address])), tmp_path / "model")
        x, weights, ids, _ = batch = a_batch(3)
        torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
        client.close()


def test_what_fails_in_the_kernel_ends_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.experts.kernels import TorchKernel

    tensors = write_experts(tmp_path / "model")
    computes, failures = TorchKernel.compute, [MemoryError()]

    def fails_once(*given: object) -> None:
        if failures:
            raise failures.pop()
        computes(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchKernel, "compute", fails_once)
    with serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as address:
        client = client_of(map_of((WHOLE, [address])), tmp_path / "model", outage_s=10.0)
        x, weights, ids, _ = batch = a_batch(3)
        torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
        assert client.report()["losses"] == 1
        client.close()
