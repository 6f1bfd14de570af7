from __future__ import annotations

import numpy as np

from cluster.experts.moving import LOAD_LIMIT_S, TELL_LIMIT_S, Mover, Stage
from cluster.experts.placement import Placement


def placement(*pools_of_experts: int) -> Placement:
    """One layer; the pool of each expert."""
    made = np.zeros((2, 1, len(pools_of_experts)), np.bool_)
    for expert, pool in enumerate(pools_of_experts):
        made[pool, 0, expert] = True
    return made


OLD, NEW = placement(0, 1, 0, 1), placement(1, 0, 0, 1)


def same(one: Placement, other: Placement) -> bool:
    return bool((one == other).all())


def test_both_homes_hold_the_weights_until_every_trunk_knows() -> None:
    mover = Mover(OLD)
    assert not mover.advance(0.0, loaded=True, told=True)
    mover.begin(NEW, 0.0)
    assert same(mover.held, OLD | NEW) and same(mover.placement, OLD)
    assert not mover.advance(1.0, loaded=False, told=True)
    assert mover.advance(2.0, loaded=True, told=False)
    assert same(mover.placement, NEW) and same(mover.held, OLD | NEW)
    assert not mover.advance(3.0, loaded=True, told=False)
    assert mover.stage is Stage.TELLS
    assert not mover.advance(4.0, loaded=True, told=True)
    assert same(mover.held, NEW) and mover.stage is Stage.RESTS
    assert mover.moved_pairs == 2


def test_weights_that_are_not_loaded_in_time_leave_everything_as_it_was() -> None:
    mover = Mover(OLD)
    mover.begin(NEW, 0.0)
    assert not mover.advance(LOAD_LIMIT_S + 0.1, loaded=False, told=True)
    assert same(mover.held, OLD) and mover.stage is Stage.RESTS and mover.moved_pairs == 0


def test_a_trunk_that_does_not_follow_does_not_keep_the_old_homes_for_ever() -> None:
    mover = Mover(OLD)
    mover.begin(NEW, 0.0)
    assert mover.advance(0.5, loaded=True, told=False)
    assert not mover.advance(0.5 + TELL_LIMIT_S + 0.1, loaded=True, told=False)
    assert same(mover.held, NEW)


def test_a_move_that_was_under_way_is_gone_on_with() -> None:
    mover = Mover(OLD)
    mover.resume(NEW, OLD | NEW, 0.0)
    assert mover.stage is Stage.TELLS and same(mover.held, OLD | NEW) and same(mover.placement, NEW)
    mover = Mover(OLD)
    mover.resume(NEW, NEW, 0.0)
    assert mover.stage is Stage.RESTS and same(mover.held, NEW)
