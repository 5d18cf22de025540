"""Calibration on images that were not chosen with the same probability."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plurum.benchmarks.claims.corrections import simulate
from plurum.predictions.arrays import Floats, Ints
from plurum.spec import Conformal, OperatingPoint, Review
from plurum.training.calibration.correction import Correction, fit_corrections
from plurum.training.calibration.shrinkage import fit_site
from plurum.training.calibration.site_rule import SiteRule, fit_site_rule
from plurum.training.fitting.points import LabelledScores
from plurum.training.statistics.calibration import conformal_quantiles
from plurum.training.statistics.patients import draw_equally, sampling_weights
from tests.training.calibration.drawn_answers import draw

SETS = Conformal(alpha=0.1, quantiles=(0.41, 0.42))
SAME = Correction(1.0, (0.0, 0.0))


def test_corrections_are_a_biased_sample_that_weights_repair() -> None:
    """A small version of `python -m plurum.benchmarks.claims.corrections`."""
    found = simulate(draws=12, served=3000)
    plain, weighted, even = (
        found[name] for name in ("corrections, unweighted", "corrections, weighted", "random sample")
    )
    assert plain["labelled"] == weighted["labelled"]
    assert even["labelled"][0] < plain["labelled"][0] / 5
    for figure in ("accuracy shown", "slope"):
        for unbiased in (weighted, even):
            mean, error = unbiased[figure]
            assert abs(mean) < 4 * error, figure
        mean, error = plain[figure]
        assert abs(mean) > 6 * error, figure
    assert weighted["coverage"][0] > 0.9 - 4 * weighted["coverage"][1]


def test_a_weighted_fit_is_that_of_repeated_images() -> None:
    probabilities, labels = draw(120, 2)
    times = np.random.default_rng(3).integers(1, 5, 120)
    odds = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, labels, sample_weight=times)
    (found,) = fit_corrections(probabilities, labels, times[None].astype(np.float64), np.array([1e-7]))
    assert found.slope == pytest.approx(expected.coef_[0, 0], abs=1e-3)
    assert found.offsets[1] - found.offsets[0] == pytest.approx(expected.intercept_[0], abs=1e-3)


def test_equal_weights_change_nothing() -> None:
    probabilities, labels = draw(80, 3, seed=2)
    plain = fit_site(probabilities, labels, np.arange(80))
    weighted = fit_site(probabilities, labels, np.arange(80), weights=np.full(80, 50.0))
    assert np.isfinite(plain.strength)
    assert weighted.strength == pytest.approx(plain.strength)
    np.testing.assert_allclose(weighted.judged, plain.judged, atol=1e-6)


def test_few_audits_are_trusted_as_far_as_they_count() -> None:
    probabilities, labels = draw(400, 2)
    weights = np.where(np.arange(400) % 20 == 0, 50.0, 1.0)
    weighted = fit_site(probabilities, labels, np.arange(400), weights=weights)
    # 400 images count as (20 · 50 + 380)² / (20 · 50² + 380) = 37.8 patients.
    allowed = np.array([8, 4, 2, 1]) * 44 / np.sqrt(1380**2 / 50380)
    assert weighted.strength == np.inf or np.isclose(allowed, weighted.strength).any()


def test_weighted_sets_by_hand() -> None:
    """One more image with the largest weight and the worst score stands for the new one."""
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    probabilities = np.stack([1 - scores, scores], axis=1)
    labels, groups = np.zeros(5, dtype=np.int64), np.arange(5)

    def limit(weights: Floats, alpha: float, of: Ints = groups) -> float:
        return conformal_quantiles(probabilities, labels, of, alpha, weights)[0]

    weights = np.array([4.0, 1.0, 1.0, 1.0, 1.0])
    # Cumulated: 4, 5, 6, 7 and 8 of 12.
    assert limit(weights, 1 - 4 / 12) == pytest.approx(0.1)
    assert limit(weights, 1 - 4.5 / 12) == pytest.approx(0.2)
    assert limit(weights, 1 - 8 / 12) == pytest.approx(0.5)
    assert limit(weights, 1 - 8.5 / 12) == 1
    # Images of a patient count together: 8 of 8 + 5.
    assert limit(weights, 1 - 8 / 13, np.array([0, 0, 1, 2, 3])) == pytest.approx(0.5)
    assert limit(weights, 1 - 8.1 / 13, np.array([0, 0, 1, 2, 3])) == 1
    plain = conformal_quantiles(probabilities, labels, groups, 0.3)
    assert plain == conformal_quantiles(probabilities, labels, groups, 0.3, np.full(5, 50.0))


def test_weighted_sets_cover_all_images_of_a_class() -> None:
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = rng.beta(1, 4, 4000)
        chosen = np.where(scores > 0.3, 1.0, 0.05)
        rows = np.flatnonzero(rng.random(3000) < chosen[:3000])
        labels, probabilities = np.zeros(len(rows), dtype=np.int64), np.stack([1 - scores, scores], axis=1)
        found = conformal_quantiles(
            probabilities[rows], labels, np.arange(len(rows)), 0.1, sampling_weights(chosen[rows])
        )
        covered.append((scores[3000:] <= found[0]).mean())
    error = np.std(covered) / np.sqrt(len(covered))
    assert 0.9 - 3 * error < np.mean(covered) < 0.93


def test_an_equal_draw_represents_all_images() -> None:
    shares, sizes = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        hard = rng.random(2000) < 0.2
        chosen = np.where(hard, 1.0, 0.05)
        rows = np.flatnonzero(rng.random(2000) < chosen)
        kept = draw_equally(sampling_weights(chosen[rows]), seed)
        shares.append(hard[rows][kept].mean())
        sizes.append(len(kept))
    assert np.mean(shares) == pytest.approx(0.2, abs=4 * np.std(shares) / np.sqrt(300))
    # 400 hard images of 20 each, and 80 others.
    assert np.mean(sizes) == pytest.approx(100, rel=0.05)
    assert draw_equally(np.ones(7), 0).tolist() == list(range(7))


def site(audits: int, reviewed: int, seed: int = 0) -> LabelledScores:
    """Return correct predictions of both classes: certain ones from audits, others from review."""
    rng = np.random.default_rng(seed)
    number = audits + reviewed
    certain = np.where(np.arange(number) < audits, rng.uniform(0.9, 1, number), rng.uniform(0.5, 0.9, number))
    labels = np.arange(number) % 2
    positive = np.where(labels == 0, certain, 1 - certain)
    weights = np.where(np.arange(number) < audits, 50.0, 1.0)
    return LabelledScores(np.stack([positive, 1 - positive], axis=1), labels, np.arange(number), ("CE", "LAA"), weights)


def test_patients_are_counted_by_what_they_weigh() -> None:
    old = SiteRule(SETS, Review(threshold=0.95, risk=0.01), None)
    many, few = fit_site_rule(old, site(60, 100), SAME), fit_site_rule(old, site(16, 400), SAME)
    # (30 · 50 + 50)² / (30 · 50² + 50) and (8 · 50 + 200)² / (8 · 50² + 200).
    assert "prediction sets: fitted to 32.0 effective patients of class CE, to cover 90.0% of it" in many.lines
    line = "prediction sets: no promise for class CE: 17.8 of 20 effective patients; the old sets stay"
    assert line in few.lines
    assert few.conformal == SETS


def test_a_class_without_audits_keeps_its_sets() -> None:
    scores = site(40, 200)
    assert scores.weights is not None
    scores = replace(scores, weights=np.where(scores.labels == 1, 1.0, scores.weights))
    found = fit_site_rule(SiteRule(SETS, Review(), None), scores, SAME)
    assert "prediction sets: no promise for class LAA: too few audits; the old sets stay" in found.lines
    assert found.conformal is not None
    assert found.conformal.quantiles[1] == 0.42


@pytest.mark.parametrize(("audits", "is_shown"), [(40, False), (800, True)])
def test_only_audits_show_a_risk_of_what_no_person_sees(audits: int, is_shown: bool) -> None:
    """300 patients without an error show a risk of 1 %; corrections of what was reviewed are no such patients."""
    point = OperatingPoint(criterion="sensitivity", value=0.95, confidence=0.95, positive="CE", threshold=0.3)
    scores = site(audits, 2000)
    found = fit_site_rule(SiteRule(None, Review(threshold=0.95, risk=0.01), None), scores, SAME)
    assert any("review: fitted to these images, for a risk of 1.00%" in line for line in found.lines) == is_shown
    found = fit_site_rule(SiteRule(None, Review(risk=0.1), point), scores, SAME)
    assert any("can't show sensitivity 0.95" in line for line in found.lines) != is_shown
