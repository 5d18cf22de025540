"""Bootstrap intervals have their nominal coverage, by patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from plurum.training.statistics.bootstrap import Bootstrap, mean_interval, percentile_interval

PATIENTS, IMAGES = 60, 5
TRUTH = 0.7
BY_PATIENT = np.repeat(np.arange(PATIENTS), IMAGES)
BY_IMAGE = np.arange(PATIENTS * IMAGES)


def right_answers(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Simulate 60 patients of 5 images, easy or hard per patient, with a true accuracy of 0.7."""
    easiness = rng.beta(1.4, 0.6, PATIENTS)
    return (rng.random(PATIENTS * IMAGES) < np.repeat(easiness, IMAGES)).astype(np.float64)


def test_intervals_by_patient_hold_the_truth_and_those_by_image_do_not() -> None:
    rng = np.random.default_rng(0)
    held = {"patient": 0, "image": 0}
    widths: dict[str, list[float]] = {"patient": [], "image": []}
    samples = 400
    for seed in range(samples):
        values = right_answers(rng)
        for name, groups in (("patient", BY_PATIENT), ("image", BY_IMAGE)):
            low, high = mean_interval(values, Bootstrap(groups, 200, seed))
            held[name] += low <= TRUTH <= high
            widths[name].append(high - low)
    # The binomial band of 95 % over 400 samples is 0.928 to 0.97; percentile intervals of 60 are a little narrow.
    assert 0.92 <= held["patient"] / samples <= 0.975
    assert held["image"] / samples < 0.85
    assert np.mean(widths["patient"]) > 1.3 * np.mean(widths["image"])
    assert all(wide > narrow for wide, narrow in zip(widths["patient"], widths["image"], strict=True))


def test_a_draw_is_as_many_patients_with_all_their_images() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2])
    counts = np.concatenate(list(Bootstrap(groups, 500, 1).blocks()), axis=1)
    assert counts.shape == (6, 500)
    assert (counts[0] == counts[1]).all()
    assert (counts[4] == counts[5]).all()
    assert (counts[[0, 3, 4]].sum(axis=0) == 3).all()
    # Each group is drawn once per draw, on average.
    np.testing.assert_allclose(counts.mean(axis=1), 1, atol=0.15)


def test_the_draws_are_the_same_each_time_and_others_with_another_seed() -> None:
    groups = np.arange(50)
    first, again = (next(iter(Bootstrap(groups, 20, 3).blocks())) for _ in range(2))
    assert (first == again).all()
    assert (first != next(iter(Bootstrap(groups, 20, 4).blocks()))).any()


def test_blocks_bound_memory_and_lose_no_draw() -> None:
    groups = np.arange(40_000)
    blocks = list(Bootstrap(groups, 120, 0).blocks())
    assert len(blocks) > 1
    assert sum(block.shape[1] for block in blocks) == 120
    assert max(block.nbytes for block in blocks) <= 8_000_000


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(5).exponential(1.0, 200)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    ours = mean_interval(values, Bootstrap(np.arange(200), 5000, 0))
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.02)


def test_draws_without_a_figure_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, np.nan, 1.0])) == (1.0, 1.0)
    low, high = percentile_interval(np.full(5, np.nan))
    assert np.isnan(low)
    assert np.isnan(high)
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


def test_weights_and_level_are_those_of_the_draws() -> None:
    """An integer weight equals that many copies of an image; a lower level gives a narrower interval."""
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=40), rng.integers(1, 4, 40)
    ours = mean_interval(values, Bootstrap(np.arange(40), 300, 0), weights=weights.astype(np.float64))
    copies = mean_interval(np.repeat(values, weights), Bootstrap(np.repeat(np.arange(40), weights), 300, 0))
    assert ours == pytest.approx(copies)
    narrow = mean_interval(values, Bootstrap(np.arange(40), 300, 0), level=0.5)
    wide = mean_interval(values, Bootstrap(np.arange(40), 300, 0), level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
