"""A trunk follows the map in its file, and wakes pools that are parked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.experts.pools import PoolMapError, split_evenly
from deployments.experts.map_file import MapFile
from tests.unit.experts.clients import WHOLE, a_batch, answer, client_of, report_with
from tests.unit.experts.pool_processes import (
    EXPERTS,
    LAYERS,
    expected,
    map_of,
    replace_map,
    server,
    serving,
    write_experts,
)

EVEN, ODD = split_evenly(range(LAYERS), EXPERTS, 2)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as entered:
        yield entered


def test_a_newer_map_is_taken_on_and_bad_ones_are_not(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    tensors = write_experts(tmp_path / "model")
    first, second = (stack.enter_context(serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/{n}")) for n in "ab")
    one = map_of((WHOLE, [first]))
    client = client_of(one, tmp_path / "model")
    stack.callback(client.close)
    for bad, said in (
        (map_of((WHOLE, [second])), "not after 1"),
        (map_of(({0: frozenset({0})}, [second]), version=2), "no pool holds"),
        (map_of((WHOLE, [f"unix:{tmp_path}/nobody"]), version=2), "24 experts cannot be reached"),
        ("{", "no JSON"),
    ):
        replace_map(client._files, bad)
        report = report_with(client, lambda report, said=said: said in report["refused"])
        assert report["map_version"] == 1
        x, weights, ids, _ = batch = a_batch(4)
        torch.testing.assert_close(answer(client, 0, batch), expected(tensors, 0, x, weights, ids))
    replace_map(client._files, one)
    report_with(client, lambda report: report["refused"] == "")
    two = map_of((WHOLE, [second]), version=2)
    replace_map(client._files, two)
    report = report_with(client, lambda report: report["map_version"] == 2)
    assert report["refused"] == "" and report["losses"] == 0 and report["lost"] == []
    torch.testing.assert_close(answer(client, 0, batch), expected(tensors, 0, x, weights, ids))
    replace_map(client._files, map_of((WHOLE, [second, f"unix:{tmp_path}/late"]), version=3))
    # One of two can be reached: that is enough, and the other one is tried until it is there.
    assert report_with(client, lambda report: report["map_version"] == 3)["lost"] == ["r0-1"]
    late = stack.enter_context(server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/late"))
    report_with(client, lambda report: report["lost"] == [])
    assert late[0].report()["trunks"] == 1


def test_a_map_that_is_refused_is_taken_on_once_its_replicas_are_there(
    tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    write_experts(tmp_path / "model")
    first = stack.enter_context(serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/a"))
    client = client_of(map_of((WHOLE, [first])), tmp_path / "model")
    stack.callback(client.close)
    replace_map(client._files, map_of((WHOLE, [f"unix:{tmp_path}/b"]), version=2))
    report_with(client, lambda report: "cannot be reached" in report["refused"])
    stack.enter_context(serving(tmp_path / "model", WHOLE, f"unix:{tmp_path}/b"))
    assert report_with(client, lambda report: report["map_version"] == 2)["refused"] == ""


def test_a_map_that_mends_one_of_two_broken_pools_is_taken_on(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    tensors = write_experts(tmp_path / "model")
    third = {layer: frozenset({0}) for layer in range(LAYERS)}
    rest = {layer: frozenset(range(1, EXPERTS)) for layer in range(LAYERS)}
    with (
        serving(tmp_path / "model", third, f"unix:{tmp_path}/a") as a,
        serving(tmp_path / "model", rest, f"unix:{tmp_path}/b") as b,
    ):
        client = client_of(map_of((third, [a]), (rest, [b])), tmp_path / "model", outage_s=10.0)
        stack.callback(client.close)
    new = stack.enter_context(serving(tmp_path / "model", rest, f"unix:{tmp_path}/c"))
    replace_map(client._files, map_of((third, [a]), (rest, [new]), version=2))
    x, weights, ids, _ = batch = a_batch(20)
    got = answer(client, 0, batch)
    use = client.take_step()
    kept = [row for row in range(20) if row not in use.degraded]
    assert 0 < len(kept) < 20
    torch.testing.assert_close(got[kept], expected(tensors, 0, x[kept], weights[kept], ids[kept]))


def test_a_parked_pool_is_asked_for_and_waited_for(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    tensors = write_experts(tmp_path / "model")
    even = stack.enter_context(serving(tmp_path / "model", EVEN, f"unix:{tmp_path}/a"))
    client = client_of(map_of((EVEN, [even]), (ODD, [])), tmp_path / "model", wake_s=20.0)
    stack.callback(client.close)
    wanted = client._files.wanted / "pool1"
    assert not wanted.exists(), "nobody asked for it yet"

    def manager() -> None:
        while not wanted.exists():
            time.sleep(0.02)
        odd = stack.enter_context(serving(tmp_path / "model", ODD, f"unix:{tmp_path}/b"))
        replace_map(client._files, map_of((EVEN, [even]), (ODD, [odd]), version=2))

    waking = threading.Thread(target=manager)
    waking.start()
    x, weights, ids, _ = batch = a_batch(9)
    torch.testing.assert_close(answer(client, 1, batch), expected(tensors, 1, x, weights, ids))
    waking.join(10)
    use = client.take_step()
    assert not use.degraded and use.wait_s > 0.1 and client.report()["map_version"] == 2


def test_other_experts_stand_in_for_a_parked_pool_that_does_not_come(
    tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    write_experts(tmp_path / "model")
    even = stack.enter_context(serving(tmp_path / "model", EVEN, f"unix:{tmp_path}/a"))
    client = client_of(map_of((EVEN, [even]), (ODD, [])), tmp_path / "model", wake_s=0.6)
    stack.callback(client.close)
    touched, begun = set(), time.monotonic()
    wanted = client._files.wanted / "pool1"
    for _ in range(4):
        answer(client, 0, a_batch(9))
        touched.add(wanted.stat().st_mtime_ns)
        time.sleep(0.3)
    # The first layer waited; the others knew already that it is in vain, and asked nevertheless.
    assert 1.8 <= time.monotonic() - begun < 2.4
    assert len(touched) == 4 and client.degraded_rows > 0
    # Once it has had a replica and is parked again, it is waited for again.
    with serving(tmp_path / "model", ODD, f"unix:{tmp_path}/b") as odd:
        replace_map(client._files, map_of((EVEN, [even]), (ODD, [odd]), version=2))
        report_with(client, lambda report: report["map_version"] == 2)
    replace_map(client._files, map_of((EVEN, [even]), (ODD, []), version=3))
    report_with(client, lambda report: report["map_version"] == 3)
    begun = time.monotonic()
    answer(client, 0, a_batch(9))
    assert time.monotonic() - begun >= 0.6


def test_replicas_that_no_map_names_any_more_are_let_go(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    write_experts(tmp_path / "model")
    old, (at_old,) = stack.enter_context(server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/a"))
    new, (at_new,) = stack.enter_context(server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/b"))
    client = client_of(map_of((WHOLE, [at_old, f"unix:{tmp_path}/gone"])), tmp_path / "model")
    stack.callback(client.close)
    assert client.report()["lost"] == ["r0-1"]
    replace_map(client._files, map_of((WHOLE, [at_new]), version=2))
    report = report_with(client, lambda report: report["map_version"] == 2)
    assert report["lost"] == [] and len(report["replicas"]) == 1
    until = time.monotonic() + 5
    while old.report()["trunks"] and time.monotonic() < until:
        time.sleep(0.02)
    assert (old.report()["trunks"], new.report()["trunks"]) == (0, 1)
    # The address of the one that was lost is served now, and nobody comes.
    gone, _ = stack.enter_context(server(tmp_path / "model", WHOLE, f"unix:{tmp_path}/gone"))
    time.sleep(0.5)
    assert gone.report()["trunks"] == 0


def test_a_client_needs_a_map_to_begin_with(tmp_path: Path) -> None:
    write_experts(tmp_path / "model")
    with pytest.raises(PoolMapError, match="no pool holds"):
        client_of(map_of((EVEN, [])), tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        MapFile(tmp_path / "nothing.json")
