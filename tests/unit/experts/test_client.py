"""A trunk's client against real pools over real sockets, without an engine."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
import torch

from cluster.experts.pools import split_evenly
from deployments.experts.job import PoolsUnreachableError
from deployments.experts.wire import FrameKind, frame
from tests.unit.experts.clients import WHOLE, a_batch, answer, client_of
from tests.unit.experts.pool_processes import (
    EXPERTS,
    LAYERS,
    SECRET,
    TOP_K,
    expected,
    map_of,
    pool_of,
    pool_process,
    serving,
    write_experts,
)


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_two_pools_say_what_the_experts_say(tmp_path: Path, rows: int, scheme: str) -> None:
    tensors = write_experts(tmp_path / "model", shards=3)
    halves = split_evenly(range(LAYERS), EXPERTS, 2)
    with contextlib.ExitStack() as stack:
        addresses = [f"unix:{tmp_path}/{n}" if scheme == "unix" else "tcp:127.0.0.1:0" for n in range(2)]
        served = [
            stack.enter_context(serving(tmp_path / "model", holds, address))
            for holds, address in zip(halves, addresses, strict=True)
        ]
        client = client_of(map_of((halves[0], [served[0]]), (halves[1], [served[1]])), tmp_path / "model")
        stack.callback(client.close)
        for layer in range(LAYERS):
            x, weights, ids, _ = batch = a_batch(rows, layer)
            torch.testing.assert_close(answer(client, layer, batch), expected(tensors, layer, x, weights, ids))
        reports = client.report()["replicas"]
        assert sum(n for r in reports for of in r["tokens"].values() for n in of.values()) == LAYERS * rows * TOP_K


def test_the_comparison_notices_two_experts_exchanged(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    names = {name: name.replace(".experts.0.", ".experts.X.") for name in tensors}
    names = {
        name: new.replace(".experts.1.", ".experts.0.").replace(".experts.X.", ".experts.1.")
        for name, new in names.items()
    }
    exchanged = {name: tensors[new] for name, new in names.items()}
    with serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as address:
        client = client_of(map_of((WHOLE, [address])), tmp_path / "model")
        x, weights, ids, logits = a_batch(17)
        got = answer(client, 0, (x, weights, ids, logits))
        client.close()
    torch.testing.assert_close(got, expected(tensors, 0, x, weights, ids))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, expected(exchanged, 0, x, weights, ids), rtol=0.1, atol=0.1)


def test_a_quarter_of_the_experts_takes_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    quarters = [pool_of(tmp_path / "model", holds).weight_bytes for holds in split_evenly(range(LAYERS), EXPERTS, 4)]
    assert quarters == [sum(tensor.nbytes for tensor in tensors.values()) // 4] * 4


def test_another_replica_takes_over_from_one_that_was_killed(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with (
        pool_process(tmp_path / "model", WHOLE, tmp_path, "a") as one,
        serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as other,
    ):
        client = client_of(map_of((WHOLE, [one.address]), (WHOLE, [other])), tmp_path / "model")
        one.kill()
        x, weights, ids, _ = batch = a_batch(9)
        torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
        assert client.report()["losses"] == 1 and client.degraded_rows == 0 and client.resent_rows > 0
        client.close()


def test_the_next_best_experts_stand_in_where_nobody_is_left(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    even, odd = split_evenly(range(LAYERS), EXPERTS, 2)
    with (
        pool_process(tmp_path / "model", even, tmp_path, "a") as lost,
        serving(tmp_path / "model", odd, f"unix:{tmp_path}/s") as left,
    ):
        client = client_of(map_of((even, [lost.address]), (odd, [left])), tmp_path / "model")
        lost.kill()
        x, _, ids, logits = batch = a_batch(9)
        got = answer(client, 0, batch)
        use = client.take_step()
        rows = sorted(use.degraded) if use else []
        client.close()
    masked = logits.clone()
    masked[:, ::2] = -torch.inf
    top, others = masked.topk(TOP_K)
    assert rows == [row for row in range(9) if (ids[row] % 2 == 0).any()]
    torch.testing.assert_close(got, expected(tensors, 0, x, torch.softmax(top, -1), others))


def test_it_waits_for_a_while_where_nobody_is_there_and_then_fails(tmp_path: Path) -> None:
    write_experts(tmp_path / "model")
    with pool_process(tmp_path / "model", WHOLE, tmp_path, "a") as only:
        client = client_of(map_of((WHOLE, [only.address])), tmp_path / "model")
        only.kill()
        with pytest.raises(PoolsUnreachableError, match="layer 2"):
            answer(client, 2, a_batch(3))
        client.close()


def test_a_replica_that_came_back_is_used_again(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with pool_process(tmp_path / "model", WHOLE, tmp_path, "a") as only:
        client = client_of(map_of((WHOLE, [only.address])), tmp_path / "model", outage_s=60.0)
        only.kill()
    x, weights, ids, _ = batch = a_batch(3)
    with pool_process(tmp_path / "model", WHOLE, tmp_path, "a"):
        torch.testing.assert_close(answer(client, 0, batch), expected(tensors, 0, x, weights, ids))
        client.close()


def test_a_replica_that_hangs_is_left_out_after_its_time(tmp_path: Path) -> None:
    tensors = write_experts(tmp_path / "model")
    with (
        pool_process(tmp_path / "model", WHOLE, tmp_path, "a") as one,
        serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as other,
    ):
        client = client_of(map_of((WHOLE, [one.address, other])), tmp_path / "model", answer_s=0.5)
        one.process.send_signal(19)
        x, weights, ids, _ = batch = a_batch(9)
        for _ in range(3):
            torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
        client.close()


@pytest.mark.parametrize("wrong", ["secret", "model", "holding"])
def test_pools_that_do_not_fit_are_refused_by_name(tmp_path: Path, wrong: str) -> None:
    write_experts(tmp_path / "model")
    holds = {layer: frozenset({0}) for layer in range(LAYERS)} if wrong == "holding" else WHOLE
    with serving(tmp_path / "model", holds, f"unix:{tmp_path}/s") as address:
        if wrong == "model":
            (tmp_path / "model" / "config.json").write_text('{"another": true}')
        secret = b"another" if wrong == "secret" else SECRET
        said = {"secret": "know the secret", "model": "another model", "holding": "does not hold experts"}
        with pytest.raises(PoolsUnreachableError, match=said[wrong]):
            client_of(map_of((WHOLE, [address])), tmp_path / "model", secret)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: pool.example\r\n\r\n",
        frame(FrameKind.STATS, 1, b""),
        frame(FrameKind.HELLO, 0, b"x" * 5000),
    ],
)
def test_who_does_not_keep_to_the_protocol_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    write_experts(tmp_path / "model")
    with serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/s") as address:
        with socket.socket(socket.AF_UNIX) as rude:
            rude.settimeout(5)
            rude.connect(address.removeprefix("unix:"))
            rude.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                while rude.recv(4096):
                    pass
        client = client_of(map_of((WHOLE, [address])), tmp_path / "model")
        assert client.report()["replicas"][0]["cut_off"] == 1
        client.close()
