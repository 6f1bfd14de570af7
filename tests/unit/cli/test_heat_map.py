"""A heat map fits the terminal, and says what shares a cell."""

from __future__ import annotations

import pytest

from deployments.cli.heat_map import BOUNDS, HeatMap, legend, shade, style_of


def test_each_expert_has_a_cell_that_is_as_wide_as_there_is_room() -> None:
    heat = HeatMap.fit([[0.5, 0.25, 0.25, 0.0], [0.0] * 4], 80)
    assert heat.folded() == ""
    assert [row.label for row in heat.rows] == ["0", "1"]
    assert heat.rows[0].cells == (2.0, 1.0, 1.0, 0.0)
    assert heat.drawn(heat.rows[0], plain=False).plain == "▆▆▆▄▄▄▄▄▄···"
    assert heat.drawn(heat.rows[1], plain=False).plain == "·" * 12
    assert heat.ruler() == "0  1  2  3"
    assert HeatMap.fit([[0.25] * 4], 9).cell == 2


def test_what_does_not_fit_is_folded_to_the_hottest() -> None:
    shares = [[0.0] * 256 for _ in range(58)]
    shares[30][200] = 1.0
    heat = HeatMap.fit(shares, 78, 10)
    assert (heat.experts_each, heat.layers_each) == (4, 6)
    assert heat.folded() == "a cell is the hottest of 4 experts, a row is 6 layers, the hottest of each"
    assert len(heat.rows) == 10
    assert [row.label for row in heat.rows][::9] == ["0-5", "54-57"]
    drawn = [heat.drawn(row, plain=False).plain for row in heat.rows]
    assert all(len(line) == 64 for line in drawn)
    assert drawn[5] == "·" * 50 + "█" + "·" * 13
    assert len(heat.ruler()) <= 66
    assert heat.rows[5].of([float(layer) for layer in range(58)]) == 35
    assert heat.rows[5].of([float(layer) for layer in range(58)], min) == 30


def test_a_terminal_without_room_still_shows_something() -> None:
    heat = HeatMap.fit([[0.5, 0.5], [1.0, 0.0]], -5, 0)
    assert [row.cells for row in heat.rows] == [(2.0,)]
    assert (heat.cell, heat.ruler()) == (1, "0")


@pytest.mark.parametrize("plain", [True, False])
def test_shades_differ_without_colour(plain: bool) -> None:
    times = [0.0, *BOUNDS, 99.0]
    shades = [shade(one, plain=plain) for one in times]
    assert len(set(shades)) == len(times)
    assert style_of(99.0) == "bold red"
    text = legend(plain=plain).plain
    assert all(one in text for one in shades)
    assert text.isascii() == plain
