"""A pool's server: its sockets, its quota, and another holding while it serves."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
import torch

from cluster.experts.pools import split_evenly
from deployments.experts.job import PoolsUnreachableError
from deployments.experts.pool_server import PoolServer
from deployments.experts.quota import Quota
from deployments.experts.weights import Checkpoint, CheckpointError
from deployments.experts.wire import connect, listen
from tests.unit.experts.clients import WHOLE, a_batch, answer, client_of
from tests.unit.experts.pool_processes import (
    EXPERTS,
    LAYERS,
    SECRET,
    TOP_K,
    expected,
    map_of,
    pool_of,
    server,
    write_experts,
)

EVEN, ODD = split_evenly(range(LAYERS), EXPERTS, 2)


def test_a_device_is_busy_with_one_batch_after_the_other() -> None:
    quota = Quota(100.0)
    assert [quota.done_at(10, arrived) for arrived in (5.0, 5.02, 9.0)] == pytest.approx([5.1, 5.2, 9.1])
    assert Quota(None).done_at(10, 5.0) == 5.0
    with pytest.raises(ValueError, match="quota"):
        Quota(0.0)


@pytest.mark.parametrize("address", ["unix:{folder}/s", "tcp:127.0.0.1:0"])
def test_who_connects_and_goes_at_once_ends_nothing(tmp_path: Path, address: str) -> None:
    write_experts(tmp_path / "model")
    with server(tmp_path / "model", WHOLE, address.format(folder=tmp_path)) as (_, (bound,)):
        for _ in range(200):
            peer = connect(bound, 1.0)
            # A reset, not a goodbye.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            # The server is a thread of this process: leave it room to accept.
            time.sleep(0.002)
        client = client_of(map_of((WHOLE, [bound])), tmp_path / "model")
        assert len(client.report()["replicas"]) == 1
        client.close()


def test_a_pool_listens_on_several_sockets_and_ends_soon(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s", "tcp:127.0.0.1:0") as (serves, addresses):
        for number, address in enumerate(addresses):
            client = client_of(map_of((WHOLE, [address])), tmp_path / "model")
            x, weights, ids, _ = batch = a_batch(5, number)
            torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
            (report,) = client.report()["replicas"]
            assert (report["pairs"], report["pairs_per_s"]) == ((number + 1) * 5 * TOP_K, None)
            client.close()
        begun = time.monotonic()
        serves.stop()
    assert time.monotonic() - begun < 0.5


def test_a_quota_holds_over_batches_and_connections_are_taken_meanwhile(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s", pairs_per_s=400.0) as (_, (address,)):
        clients = [client_of(map_of((WHOLE, [address])), tmp_path / "model") for _ in range(2)]
        seen, begun = [0, 0], time.monotonic()

        def ask(number: int) -> None:
            x, weights, ids, _ = batch = a_batch(10, number)
            for _ in range(4):
                torch.testing.assert_close(answer(clients[number], 0, batch), expected(tensors, 0, x, weights, ids))
                seen[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        third = client_of(map_of((WHOLE, [address])), tmp_path / "model")
        told = third.report()["replicas"][0]
        assert time.monotonic() - begun < 0.3, "a report does not wait behind batches"
        assert told["pairs_per_s"] == 400.0
        for thread in threads:
            thread.join(10)
        took = time.monotonic() - begun
        # 2 x 4 batches of 20 pairs at 400 a second.
        assert seen == [4, 4] and 0.4 <= took < 0.6
        for client in (*clients, third):
            client.close()


def test_what_a_pool_holds_changes_while_it_serves(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with contextlib.ExitStack() as stack:
        a, (at_a,) = stack.enter_context(server(tmp_path / "model", EVEN, f"unix:{tmp_path}/a"))
        _, (at_b,) = stack.enter_context(server(tmp_path / "model", ODD, f"unix:{tmp_path}/b"))
        client = client_of(map_of((EVEN, [at_a]), (ODD, [at_b])), tmp_path / "model")
        stack.callback(client.close)
        wrong: list[str] = []
        done = threading.Event()

        def ask() -> None:
            number = 0
            while not done.is_set():
                number += 1
                x, weights, ids, _ = batch = a_batch(7, number)
                if not torch.allclose(answer(client, 0, batch), expected(tensors, 0, x, weights, ids), atol=1e-5):
                    wrong.append(f"batch {number}")

        asking = threading.Thread(target=ask)
        asking.start()
        for holds in (WHOLE, EVEN, {**EVEN, 0: WHOLE[0]}, EVEN) * 3:
            prepared = a._pool.prepare(holds)
            layers = {n for n, layer in prepared.layers.items() if layer is not a._pool._layers[n]}
            assert layers == {n for n, held in holds.items() if held != a._pool.holds[n]}, "no other layer is read"
            begun = time.monotonic()
            a.adopt(prepared)
            assert time.monotonic() - begun < 0.5
        done.set()
        asking.join(10)
        assert wrong == [] and client.degraded_rows == 0 and client.resent_rows == 0
        a.adopt(a._pool.prepare(WHOLE))
        whole = client_of(map_of((WHOLE, [at_a])), tmp_path / "model")
        stack.callback(whole.close)
        x, weights, ids, _ = batch = a_batch(7)
        torch.testing.assert_close(answer(whole, 0, batch), expected(tensors, 0, x, weights, ids))
        # Who still goes by the old holding is refused, and what counted once stays counted.
        pairs = a.report()["pairs"]
        a.adopt(a._pool.prepare(EVEN))
        with pytest.raises(PoolsUnreachableError):
            answer(whole, 0, batch)
        assert a.report()["pairs"] == pairs
        with pytest.raises(CheckpointError, match="no expert 99"):
            a._pool.prepare({0: frozenset({99})})


def test_nobody_waits_for_ever_for_a_server_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experts(tmp_path / "model")
    monkeypatch.setattr("deployments.experts.calls.CALL_S", 0.1)
    pool = pool_of(tmp_path / "model", EVEN)
    idle = PoolServer(
        pool, [listen(f"unix:{tmp_path}/s")], "idle", Checkpoint(tmp_path / "model").fingerprint(), SECRET
    )
    with pytest.raises(TimeoutError):
        idle.adopt(pool.prepare(WHOLE))
    thread = threading.Thread(target=idle.run)
    thread.start()
    time.sleep(0.1)
    assert pool.holds == EVEN, "what was given up is not done later"
    idle.stop()
    thread.join(1)
    assert not thread.is_alive()


def test_cut_connections_come_back(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as (serves, (address,)):
        client = client_of(map_of((WHOLE, [address])), tmp_path / "model", outage_s=10.0)
        serves.cut()
        x, weights, ids, _ = batch = a_batch(3)
        torch.testing.assert_close(answer(client, 2, batch), expected(tensors, 2, x, weights, ids))
        assert client.report()["losses"] == 1
        client.close()


@pytest.mark.parametrize("rows", [1, 16, 100])
def test_rows_with_fewer_experts_here_than_others_are_no_different(tmp_path: Path, rows: int) -> None:
    tensors = write_experts(tmp_path / "model")
    # Most rows have one expert in the first pool, some two, some none.
    few = {layer: frozenset({0, 1, 2}) for layer in range(LAYERS)}
    rest = {layer: frozenset(range(3, EXPERTS)) for layer in range(LAYERS)}
    with (
        server(tmp_path / "model", few, f"unix:{tmp_path}/a") as (_, (a,)),
        server(tmp_path / "model", rest, f"unix:{tmp_path}/b") as (_, (b,)),
    ):
        client = client_of(map_of((few, [a]), (rest, [b])), tmp_path / "model")
        for seed in range(5):
            x, weights, ids, _ = batch = a_batch(rows, seed)
            torch.testing.assert_close(answer(client, 0, batch), expected(tensors, 0, x, weights, ids))
        client.close()
