"""Outlier reference of a site: from its own images where they are enough and represent it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.predictions.arrays import Floats
from plurum.spec import OutlierRule
from plurum.training.calibration.site_outliers import fit_site_outliers, write_reference
from plurum.voting import OutlierTest, outlier_test_from_ensemble

MEMBERS = 2


def rule(alpha: float = 0.05) -> OutlierRule:
    """Return a test whose reference is of 500 patients."""
    parts = OutlierRule(
        alpha=alpha,
        members=(True,) * MEMBERS,
        detectors=("a" * 64, "b" * 64),
        weights=(0.5, 0.5),
        reference=(0.0,),
        patients=1,
        split="calibration",
    )
    return parts.with_reference(draw(500, 0).mean(axis=1), np.arange(500))


def draw(images: int, seed: int, shift: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(shift, 1, (images, MEMBERS))


def form(found: OutlierRule | None) -> OutlierTest:
    assert found is not None
    test = outlier_test_from_ensemble({"outliers": found.model_dump()})
    assert test is not None
    return test


def test_at_a_shifted_site_the_rate_of_false_alarms_holds_again() -> None:
    old, new = rule(), draw(20_000, 2, shift=1.5)
    found = [fit_site_outliers(old, draw(400, seed, 1.5), np.arange(400), None, is_biased=False) for seed in range(20)]
    assert all(one.rule is not None and (one.rule.split, one.rule.patients) == ("site", 400) for one in found)
    assert form(old).test(new)[1].mean() > 0.5
    flagged = [form(one.rule).test(new)[1].mean() for one in found]
    # The standard deviation of a reference's rate is 0.011.
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.01)
    assert "the reference is of 400 patients of the site; with the fit's, " in found[0].lines[0]


@pytest.mark.parametrize(("patients", "is_fitted"), [(19, False), (20, True)])
def test_patients_are_counted_not_images(patients: int, is_fitted: bool) -> None:
    groups = np.repeat(np.arange(patients), 10)
    found = fit_site_outliers(rule(), draw(len(groups), 1), groups, None, is_biased=False)
    assert (found.rule == rule()) is not is_fitted
    assert (found.rows is not None) is is_fitted
    assert ("rate of false alarms here is not known" in found.lines[0]) is not is_fitted
    if is_fitted:
        assert found.rule is not None
        assert found.rule.counts == (0.1,) * len(groups)


def test_corrections_without_audits_are_no_reference() -> None:
    found = fit_site_outliers(rule(), draw(400, 1, shift=3), np.arange(400), None, is_biased=True)
    assert (found.rule, found.rows) == (rule(), None)
    assert "images that were chosen for review are no reference" in found.lines[0]


def test_of_weighted_images_a_sample_without_weights_is_the_reference() -> None:
    """Outliers were chosen ten times as often, so that plain images would be too unusual a reference."""
    novelty = np.concatenate([draw(600, 1), draw(300, 2, shift=3)])
    weights = np.repeat([10.0, 1.0], [600, 300])
    found = fit_site_outliers(rule(), novelty, np.arange(900), weights, is_biased=False)
    assert found.rows is not None
    assert found.rule is not None
    assert set(range(600)) <= set(found.rows.tolist())
    assert 600 + 10 < len(found.rows) < 600 + 60
    assert len(found.rule.reference) == found.rule.patients == len(found.rows)


def test_without_a_test_nothing_is_fitted(tmp_path: Path) -> None:
    found = fit_site_outliers(None, draw(10, 1), np.arange(10), None, is_biased=False)
    assert (found.rule, found.rows, found.lines) == (None, None, ())
    write_reference(tmp_path / "reference.npz", found.rows, np.zeros((10, 2, 2, 3), np.uint8), np.arange(10))
    assert not any(tmp_path.iterdir())
