"""Thresholds with a promise: values by hand, scipy's exact interval, and simulated studies with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from plurum.predictions.arrays import Floats, Ints
from plurum.promises.risk_control import count_required_patients, smallest_promise
from plurum.training.statistics.operating_points import Promise, accepted_below, limit_of_class, midpoint_below

PROMISE = Promise(loss=0.05, confidence=0.95)
STUDIES = 1000
# Studies that must keep a promise of 95 %, less the noise of 1,000 of them.
KEPT = 927


def test_a_promise_needs_enough_patients() -> None:
    assert count_required_patients(PROMISE.loss, PROMISE.confidence) == 59
    assert 0.95**59 <= 0.05 < 0.95**58
    assert smallest_promise(59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))
    scores = np.linspace(0.1, 0.9, 58)
    assert limit_of_class(scores, np.arange(58), PROMISE) is None
    assert limit_of_class(np.zeros(0), np.zeros(0, dtype=np.int64), PROMISE) is None


@pytest.mark.parametrize("patients", [59, 93, 200, 1000])
def test_the_limit_of_single_images_is_the_exact_binomial_one(patients: int) -> None:
    """Clopper–Pearson's upper limit of the missed fraction is at most 5 %, and of one more it is not."""
    scores = np.random.default_rng(patients).permutation(patients) / patients
    limit = limit_of_class(scores, np.arange(patients), PROMISE)
    assert limit is not None
    missed = int((scores < limit).sum())
    assert beta.ppf(0.95, missed + 1, patients - missed) <= 0.05
    assert beta.ppf(0.95, missed + 2, patients - missed - 1) > 0.05


def test_equal_scores_are_decided_together() -> None:
    scores = np.array([0.2] * 10 + [0.8] * 100)
    assert limit_of_class(scores, np.arange(110), PROMISE) == 0.2
    assert midpoint_below(0.8, scores) == 0.5
    assert midpoint_below(0.2, scores) == 0.1
    wrong = np.array([False] * 100 + [True] * 10)
    below = accepted_below(np.array([0.3] * 100 + [0.6] * 10), wrong, np.arange(110), PROMISE)
    assert below == pytest.approx(0.45)


def test_all_or_none_may_be_accepted() -> None:
    scores, groups = np.linspace(0, 1, 100), np.arange(100)
    assert accepted_below(scores, np.zeros(100, dtype=bool), groups, PROMISE) == math.inf
    assert accepted_below(scores, np.ones(100, dtype=bool), groups, PROMISE) is None
    assert accepted_below(scores[:58], np.zeros(58, dtype=bool), groups[:58], PROMISE) is None
    assert accepted_below(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64), PROMISE) is None


def test_a_patient_counts_once_however_many_images_it_has() -> None:
    groups = np.repeat(np.arange(59), 10)
    assert limit_of_class(np.linspace(0.1, 0.9, 590), groups, PROMISE) is not None
    few = np.repeat(np.arange(10), 59)
    assert limit_of_class(np.linspace(0.1, 0.9, 590), few, PROMISE) is None


def study(rng: np.random.Generator, patients: int, images: int) -> tuple[Floats, Ints]:
    """Draw scores of positive images: normal, with a part that the images of a patient share."""
    shared = rng.normal(size=patients) if images > 1 else np.zeros(patients)
    own = rng.normal(size=(patients, images))
    scores = own if images == 1 else math.sqrt(0.6) * shared[:, None] + math.sqrt(0.4) * own
    return scores.ravel(), np.repeat(np.arange(patients), images)


@pytest.mark.parametrize("images", [1, 5])
def test_a_sensitivity_holds_for_new_patients(images: int) -> None:
    """Each image's score is standard normal, so the true sensitivity of a limit is known."""
    rng, kept, by_image = np.random.default_rng(images), 0, 0
    for _ in range(STUDIES):
        scores, groups = study(rng, 150, images)
        limit = limit_of_class(scores, groups, PROMISE)
        assert limit is not None
        kept += norm.sf(limit) >= 0.95
        of_images = limit_of_class(scores, np.arange(len(scores)), PROMISE)
        assert of_images is not None
        by_image += norm.sf(of_images) >= 0.95
    assert kept >= KEPT
    # Images of a patient are no new patients: the promise by image breaks more often.
    assert (by_image >= KEPT) == (images == 1)


def test_decisions_below_a_limit_are_as_good_as_promised() -> None:
    """The probability of the positive class is the score itself, so the true error rate below a limit is known."""
    rng, kept, found = np.random.default_rng(3), 0, 0
    for _ in range(STUDIES):
        scores = rng.uniform(0, 0.2, 400)
        wrong = rng.uniform(size=400) < scores
        limit = accepted_below(scores, wrong, np.arange(400), PROMISE)
        if limit is not None:
            found += 1
            kept += min(limit, 0.2) / 2 <= 0.05
    assert found >= 300
    assert STUDIES - found + kept >= KEPT
