"""Member selection, on simulated predictions."""

from __future__ import annotations

import numpy as np
import pytest

from plurum.predictions.arrays import Floats, Ints
from plurum.training.fitting.selection import Selection, measure_contributions, select_backward
from plurum.training.fitting.weights import soft_losses
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.voting import soft_vote, softmax
from tests.training.fitting.simulated_members import resembling, simulated


def selected(members: Floats, labels: Ints) -> Selection:
    bootstrap = Bootstrap(np.arange(len(labels)), 300, 0)
    return select_backward(lambda weights: soft_vote(members, weights), labels, members.shape[1], bootstrap)


def test_a_contribution_is_what_the_vote_loses_without_the_member() -> None:
    members, labels = simulated(200, (2.0, 1.5, 0.0))
    bootstrap = Bootstrap(np.arange(200) // 2, 300, 0)
    weights = np.array([0.5, 0.25, 0.25])
    found = measure_contributions(lambda given: soft_vote(members, given), labels, weights, bootstrap)
    without = {0: (0, 0.5, 0.5), 1: (2 / 3, 0, 1 / 3), 2: (2 / 3, 1 / 3, 0)}
    for member, rest in without.items():
        more = soft_losses(members, labels, np.array(rest)) - soft_losses(members, labels, weights)
        figure = found[member]
        assert figure.value == pytest.approx(more.mean())
        assert (figure.low, figure.high) == pytest.approx(mean_interval(more, bootstrap))
    assert found[0].low is not None
    assert found[0].low > 0


def test_a_member_that_is_alone_or_left_out_has_no_contribution() -> None:
    members, labels = simulated(50, (1.0, 1.0))
    found = measure_contributions(
        lambda given: soft_vote(members, given), labels, np.array([0.0, 1.0]), Bootstrap(np.arange(50), 100, 0)
    )
    assert found == {}


def test_members_that_spoil_the_vote_are_left_out_the_worst_first() -> None:
    """Two confident random members are removed, and two good ones stay."""
    members, labels = simulated(400, (2.5, 0.0, 2.5, 0.0))
    members[:, 1], members[:, 3] = softmax(2 * np.log(members[:, 1])), softmax(4 * np.log(members[:, 3]))
    selection = selected(members, labels)
    assert selection.weights.tolist() == [0.5, 0, 0.5, 0]
    harmful, worst = selection.contributions[1], selection.contributions[3]
    assert harmful is not None
    assert worst is not None
    assert (harmful.high or 0) < 0
    assert (worst.value or 0) < (harmful.value or 0) < 0
    for index in (0, 2):
        kept = selection.contributions[index]
        assert kept is not None
        assert (kept.low or 0) > 0


@pytest.mark.parametrize(("images", "number", "classes", "draws"), [(60, 4, 3, 40), (60, 6, 2, 80), (300, 10, 3, 15)])
def test_members_alike_all_stay(images: int, number: int, classes: int, draws: int) -> None:
    """Equally good members are hardly ever left out by chance."""
    left_out = 0
    for seed in range(draws):
        members, labels = resembling(images, (1.5,) * number, classes, seed)
        left_out += int((selected(members, labels).weights == 0).any())
    assert left_out <= 3


def test_a_member_that_was_hardly_trained_is_always_left_out() -> None:
    for seed in range(20):
        assert selected(*resembling(300, (0.3, 1.5, 1.5, 1.5), 3, seed)).weights[0] == 0


def test_copies_of_a_member_all_stay() -> None:
    same = np.repeat(simulated(60, (1.0,))[0], 3, axis=1)
    np.testing.assert_allclose(selected(same, np.arange(60) % 3).weights, 1 / 3)
