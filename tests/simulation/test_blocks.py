from __future__ import annotations

import pytest

from deployments.engines.simulated.blocks import BlockPool


def test_blocks_are_taken_all_or_none() -> None:
    pool = BlockPool(3)
    assert pool.take((), 4) is None
    assert pool.in_use == 0
    assert pool.take((), 3) == [0, 1, 2]
    assert pool.take((), 1) is None
    pool.release([0, 1, 2])
    assert pool.in_use == 0
    assert pool.faults() == []


def test_a_free_block_keeps_its_content_until_it_is_reused() -> None:
    pool = BlockPool(2)
    held = pool.take((), 1)
    assert held == [0]
    pool.label(0, key=77)
    pool.release(held)
    assert pool.find([77, 78]) == [0]
    assert pool.take(pool.find([77]), 0) == [0]
    pool.release([0])
    # Two fresh blocks: the second one is the labelled block, whose content is gone then.
    assert pool.take((), 2) == [1, 0]
    assert pool.find([77]) == []
    assert pool.faults() == []


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    pool.take((), 1)
    pool.label(0, key=5)
    assert pool.take([0], 1) == [0, 1]
    pool.release([0])
    assert pool.in_use == 2
    pool.release([0, 1])
    assert pool.in_use == 0


def test_idle_shared_blocks_are_not_counted_twice() -> None:
    pool = BlockPool(2)
    pool.take((), 1)
    pool.label(0, key=5)
    pool.release([0])
    assert not pool.can_take([0], 2)
    assert pool.take([0], 2) is None
    assert pool.faults() == []


def test_faults_are_found() -> None:
    pool = BlockPool(2)
    pool.take((), 1)
    pool.release([0, 0])
    assert pool.faults()
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(0)
