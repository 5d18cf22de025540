"""Diversity of members, against cases computed by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from plurum.training.statistics.diversity import error_correlation, measure_diversity, q_statistic


def pair(both: int, first: int, second: int, neither: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return masks of two members' correct predictions."""
    ones = [True] * both + [True] * first + [False] * second + [False] * neither
    others = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(ones), np.array(others)


def test_q_and_correlation_by_hand() -> None:
    right = pair(both=5, first=2, second=1, neither=2)
    assert q_statistic(*right) == pytest.approx((5 * 2 - 2 * 1) / (5 * 2 + 2 * 1))
    # Kuncheva & Whitaker (2003).
    expected = (5 * 2 - 2 * 1) / np.sqrt((5 + 2) * (1 + 2) * (5 + 1) * (2 + 2))
    assert error_correlation(*right) == pytest.approx(expected)


def test_independent_members_have_q_and_correlation_0() -> None:
    right = pair(both=36, first=12, second=12, neither=4)
    assert q_statistic(*right) == 0
    assert error_correlation(*right) == pytest.approx(0)


def test_members_alike_and_members_opposed() -> None:
    assert q_statistic(*pair(6, 0, 0, 4)) == error_correlation(*pair(6, 0, 0, 4)) == 1
    assert q_statistic(*pair(0, 5, 5, 0)) == -1
    assert error_correlation(*pair(0, 5, 5, 0)) == pytest.approx(-1)


def test_undefined_figures_are_none() -> None:
    assert q_statistic(*pair(9, 1, 0, 0)) is None
    assert error_correlation(*pair(9, 1, 0, 0)) is None
    assert error_correlation(*pair(0, 0, 3, 7)) is None


def test_all_of_three_members() -> None:
    labels = np.array([0, 0, 1, 2])
    winners = np.array([[0, 0, 1], [1, 1, 2], [1, 0, 1], [0, 1, 0]])
    found = measure_diversity(winners, labels, ("a", "b", "c"))
    assert found is not None
    assert [(p.first, p.second, p.disagreement) for p in found.pairs] == [
        ("a", "b", 0.5),
        ("a", "c", 0.5),
        ("b", "c", 1.0),
    ]
    assert found.disagreement == pytest.approx(2 / 3)
    # All members are wrong on the second and the fourth image.
    assert (found.oracle_accuracy, found.all_wrong) == (0.5, 0.5)
    # Correct predictions by member: a 1010, b 1000, c 0010.
    assert [p.q for p in found.pairs] == [1.0, 1.0, -1.0]
    assert found.q == pytest.approx(1 / 3)


def test_a_mean_is_over_the_pairs_that_have_a_value() -> None:
    labels = np.array([0, 0, 0, 0])
    winners = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    found = measure_diversity(winners, labels, ("never wrong", "b", "c"))
    assert found is not None
    assert [p.q for p in found.pairs] == [None, None, 0.0]
    assert found.q == 0
    assert found.correlation == pytest.approx(0)


def test_a_single_member_has_no_diversity() -> None:
    assert measure_diversity(np.array([[0], [1]]), np.array([0, 1]), ("a",)) is None
