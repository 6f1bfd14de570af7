import numpy as np
import pytest

from cluster.experts.load import ExpertLog, ExpertShape
from cluster.experts.stability import UNNAMED, compare, perturbations

SHAPE = ExpertShape(layers=2, experts=8, top_k=2)


def log(*tokens: tuple[int, list[list[int]]]) -> ExpertLog:
    """Token ids, each with its experts by layer."""
    experts = np.array([routed for _, routed in tokens], "<u2").reshape(len(tokens), SHAPE.layers, SHAPE.top_k)
    return ExpertLog(tuple(token for token, _ in tokens), experts.tobytes())


def same(*tokens: int) -> ExpertLog:
    return log(*((token, [[0, 1], [2, 3]]) for token in tokens))


def test_a_log_is_as_stable_as_can_be_against_itself() -> None:
    one = compare(same(5, 6, 7), same(5, 6, 7), SHAPE)
    assert (one.score, one.changed, one.first_change, one.aligned) == (1, 0, None, 3)
    np.testing.assert_array_equal(one.by_layer, [1, 1])


def test_the_order_of_the_experts_of_a_token_means_nothing() -> None:
    other = log((5, [[1, 0], [3, 2]]))
    assert compare(same(5), other, SHAPE).score == 1


def test_overlap_by_layer_and_where_it_changed_first() -> None:
    a = same(5, 6, 7, 8)
    b = log((5, [[0, 1], [2, 3]]), (6, [[0, 1], [2, 9]]), (7, [[4, 5], [2, 3]]), (8, [[0, 1], [2, 3]]))
    one = compare(a, b, SHAPE)
    np.testing.assert_allclose(one.by_layer, [3 / 4, 7 / 8])
    assert one.score == pytest.approx(13 / 16)
    assert one.changed == 2 / 8
    assert one.first_change == (1, 1)


def test_text_put_in_between_moves_the_rest_but_changes_nothing() -> None:
    one = compare(same(5, 6, 7, 8), same(1, 2, 5, 6, 99, 7, 8), SHAPE)
    assert (one.aligned, one.tokens_a, one.tokens_b, one.score, one.by_position) == (4, 4, 7, 1, False)
    moved = log((1, [[6, 7], [6, 7]]), (5, [[0, 1], [2, 3]]), (6, [[0, 4], [2, 3]]))
    assert compare(same(5, 6), moved, SHAPE).first_change == (1, 0)


def test_tokens_that_come_often_are_aligned_too() -> None:
    often = (7,) * 300
    assert compare(same(*often, 8), same(9, *often), SHAPE).aligned == 300


def test_many_tokens_are_compared_in_parts() -> None:
    a = same(*range(2500))
    b = log(*((token, [[0, 1], [2, 3]] if token != 2200 else [[0, 5], [2, 3]]) for token in range(2500)))
    one = compare(a, b, SHAPE)
    assert one.first_change == (2200, 0) and one.changed == pytest.approx(1 / 5000)


def test_nothing_in_common_scores_nothing() -> None:
    for one in (compare(same(1, 2), same(3), SHAPE), compare(same(), same(3), SHAPE)):
        assert (one.aligned, one.score, one.changed, one.first_change) == (0, 0, 1, None)


def test_logs_that_name_no_tokens_are_aligned_by_position() -> None:
    one = compare(same(UNNAMED, UNNAMED), same(UNNAMED, UNNAMED, UNNAMED), SHAPE)
    assert (one.aligned, one.by_position, one.score) == (2, True, 1)


def test_a_log_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        compare(same(1, 2), same(1, 2), ExpertShape(layers=3, experts=8, top_k=2))


TEXT = "Write a short poem about rivers.\nKeep it calm"


def test_each_variant_changes_one_thing() -> None:
    made = dict(perturbations(TEXT, 3))
    assert set(made) == {
        "trailing space", "double space", "punctuation", "letter case", "typo", "leading sentence", "line breaks",
    }  # fmt: skip
    assert made["trailing space"] == TEXT + " "
    assert made["double space"].split() == TEXT.split() and len(made["double space"]) == len(TEXT) + 1
    assert made["punctuation"] == TEXT + "."
    assert made["letter case"] == "w" + TEXT[1:]
    assert sorted(made["typo"]) == sorted(TEXT)
    assert sum(one != other for one, other in zip(made["typo"], TEXT, strict=True)) == 2
    assert made["leading sentence"].endswith(" " + TEXT)
    assert made["line breaks"] == TEXT.replace("\n", "\r\n")


def test_variants_follow_from_the_seed() -> None:
    assert perturbations(TEXT, 3) == perturbations(TEXT, 3)
    assert len({perturbations(TEXT, seed) for seed in range(20)}) > 5


def test_marks_and_line_breaks_go_both_ways() -> None:
    made = dict(perturbations("One line!", 0))
    assert made["punctuation"] == "One line" and made["line breaks"] == "One line!\n"
    assert dict(perturbations("a\r\nb", 0))["line breaks"] == "a\nb"


def test_what_a_text_has_no_place_for_is_left_out() -> None:
    assert {name for name, _ in perturbations("1 + 1", 0)} == {
        "trailing space", "double space", "punctuation", "leading sentence", "line breaks",
    }  # fmt: skip
    assert perturbations("", 0)[0] == ("trailing space", " ")
