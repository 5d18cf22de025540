"""Parity: measured figures, and every limit of the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plurum.errors import ParityError
from plurum.export.repository.parity import check_parity, member_parity, verdict_from_members, vote_parity
from plurum.export.settings import BUDGETS, Budget, ExportSettings
from plurum.training.statistics.metrics import LabelledPredictions, Scorer
from plurum.voting import VotingRule, softmax

LOOSE = Budget(max_difference=1, flips=1, accuracy_loss=1, nll_increase=100, ece_increase=1, review_flips=1)
ORIGINAL = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
LABELS = np.array([0, 0, 1, 1])


def budget(**strict: float) -> Budget:
    return LOOSE.model_copy(update=strict)


def test_figures_by_hand() -> None:
    exported = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.45, 0.55]])
    parity = member_parity("m", "int8", ORIGINAL, exported, LABELS, LOOSE)
    assert (parity.images, parity.flips, parity.review_flips) == (4, 2, None)
    assert parity.max_difference == pytest.approx(0.2)
    assert parity.mean_difference == pytest.approx((0 + 0.2 + 0.1 + 0.1) / 4)
    assert (parity.accuracy, parity.accuracy_change) == (0.75, 0.0)
    nll = [-np.log(np.array(true)).mean() for true in ([0.9, 0.6, 0.8, 0.45], [0.9, 0.4, 0.7, 0.55])]
    assert parity.nll_change == pytest.approx(nll[1] - nll[0])
    # 0.6 and 0.55 share a bin with one correct prediction on both sides; the others are correct and alone in theirs.
    gaps = [[0.1, 0.2, 0.55 - 0.4], [0.1, 0.3, 0.6 - 0.45]]
    assert parity.ece_change == pytest.approx((sum(gaps[1]) - sum(gaps[0])) / 4)
    assert parity.passed


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (12, 3), elements=st.floats(-6, 6)), st.integers(0, 9))
def test_accuracy_nll_and_ece_are_the_judges(logits: npt.NDArray[np.float64], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, 12)
    even = np.full((12, 3), 1 / 3)
    answers = softmax(logits)
    parity = member_parity("m", "fp32", even, answers, labels, LOOSE)
    one = np.ones((12, 1), dtype=np.float32)
    figures = [
        Scorer(LabelledPredictions(given, given.argmax(axis=1), labels))(one).overall for given in (even, answers)
    ]
    for name, change in (("accuracy", parity.accuracy_change), ("nll", parity.nll_change), ("ece", parity.ece_change)):
        assert change == pytest.approx(float(figures[1][name][0] - figures[0][name][0]), abs=1e-6)


@pytest.mark.parametrize(
    ("field", "limit", "exported", "message"),
    [
        ("max_difference", 0.05, [[0.8, 0.2], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], "differ by up to 0.1"),
        ("flips", 0.04, [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]], "fraction of changed labels 0.25"),
        ("accuracy_loss", 0.04, [[0.4, 0.6], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], "loss of accuracy 0.25"),
        ("nll_increase", 0.005, [[0.9, 0.1], [0.51, 0.49], [0.2, 0.8], [0.55, 0.45]], "increase of NLL"),
        ("ece_increase", 0.01, [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.95, 0.05]], "increase of ECE"),
    ],
)
def test_every_budget_of_a_member_can_be_broken(
    field: str, limit: float, exported: list[list[float]], message: str
) -> None:
    original, received = (np.tile(given, (5, 1)) for given in (ORIGINAL, np.array(exported)))
    labels, strict = np.tile(LABELS, 5), budget(**{field: limit})
    assert member_parity("m", "int8", original, original, labels, strict).passed
    parity = member_parity("m", "int8", original, received, labels, strict)
    assert len(parity.faults) == 1
    with pytest.raises(ParityError, match=f"INT8 graph of m differs from PyTorch on 20 .*{message}"):
        check_parity(parity)


def test_a_flipped_review_breaks_the_votes_budget() -> None:
    rule = VotingRule(weights=(1.0,), review_threshold=0.57)
    original = verdict_from_members([ORIGINAL], rule)
    exported = verdict_from_members([np.array([[0.9, 0.1], [0.56, 0.44], [0.2, 0.8], [0.55, 0.45]])], rule)
    parity = vote_parity("vote", "int8", original, exported, LABELS, budget(review_flips=0.2), rule)
    assert (parity.review_flips, parity.flips) == (1, 0)
    assert parity.faults == ("fraction of changed review flags 0.25 (at most 0.2)",)


@pytest.mark.parametrize("name", ["entropy", "disagreement", "std"])
@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_an_uncertainty_must_be_what_its_own_members_make_it(name: str, wrong: float) -> None:
    rule = VotingRule(weights=(0.5, 0.5))
    original = verdict_from_members([ORIGINAL, ORIGINAL], rule)
    # The vote over coarse members can still be computed correctly.
    coarse = verdict_from_members([ORIGINAL, ORIGINAL + np.array([-0.02, 0.02])], rule)
    fine = vote_parity("ensemble_fused", "int8", original, coarse, LABELS, LOOSE, rule)
    assert (fine.passed, fine.uncertainty_difference) == (True, 0)
    values = getattr(coarse, name).copy()
    values[2] += wrong
    parity = vote_parity("ensemble_fused", "int8", original, replace(coarse, **{name: values}), LABELS, LOOSE, rule)
    (fault,) = parity.faults
    assert fault.startswith("uncertainty differs from that of its members by up to")


def test_nan_never_passes() -> None:
    broken = ORIGINAL.copy()
    broken[2] = np.nan
    parity = member_parity("m", "fp32", ORIGINAL, broken, LABELS, LOOSE)
    assert not parity.passed


def test_a_member_may_lose_more_than_the_vote() -> None:
    exported = ORIGINAL.copy()
    exported[3] = [0.45, 0.55]
    strict = budget(flips=0.06)
    rule = VotingRule(weights=(1.0,))
    verdicts = [verdict_from_members([given], rule) for given in (ORIGINAL, exported)]
    assert member_parity("m", "int8", ORIGINAL, exported, LABELS, strict).passed
    assert not vote_parity("vote", "int8", verdicts[0], verdicts[1], LABELS, strict, rule).passed


def test_defaults_are_those_that_are_documented() -> None:
    assert (BUDGETS["int8"].flips, BUDGETS["int8"].accuracy_loss) == (0.002, 0.002)
    for fine in ("fp32", "fp16"):
        assert BUDGETS[fine].flips == pytest.approx(BUDGETS["int8"].flips / 10)
        assert BUDGETS[fine].accuracy_loss == pytest.approx(0.0002)
    assert ExportSettings(tolerance=3e-3).budget("fp32").max_difference == 3e-3
