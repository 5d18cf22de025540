from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.errors import MetadataError
from plurum.spec import Ensemble, OutlierRule, read_ensemble, write_metadata
from plurum.voting.outliers import outlier_test_from_ensemble
from tests.outliers.samples import outliers
from tests.sample_runs.member_samples import IMAGE, SCORES, SHA, member


def ensemble(**changes: object) -> dict[str, Any]:
    return {
        "name": "clots",
        "classes": ["CE", "LAA"],
        "image": dict(IMAGE),
        "members": [member("one"), member("two")],
        "voting": {"mode": "soft", "weights": [0.25, 0.75]},
        "data": {"data": "clots.npz", "fingerprint": SHA, "images": {"train": 80, "validation": 40}},
        "scores": {"validation": SCORES},
    } | changes


def test_an_outlier_test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Ensemble.model_validate(ensemble(version=2, outliers=outliers()))
    write_metadata(tmp_path / "ensemble.json", whole)
    assert read_ensemble(tmp_path / "ensemble.json") == whole
    assert whole.outliers is not None
    assert whole.outliers.reference == (-1.5, 0.0, 0.25, 2.0)


def test_an_outlier_test_comes_and_goes_with_its_version() -> None:
    plain = Ensemble.model_validate(ensemble())
    assert "outliers" not in plain.model_dump()
    tested = plain.with_outliers(OutlierRule.model_validate(outliers()))
    assert tested == Ensemble.model_validate(ensemble(version=2, outliers=outliers()))
    assert tested.with_promise(None) == tested
    assert tested.with_outliers(None) == plain


def test_a_patient_with_several_images_counts_once() -> None:
    rule = OutlierRule.model_validate(outliers(counts=[0.5, 1, 1, 0.5], patients=3))
    assert rule.patients == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0}, "outliers.alpha: Input should be greater than 0"),
        ({"weights": [0.5, 0.5]}, "weights: expected 0 for members without a detector"),
        ({"weights": [0.0, 0.5]}, "weights: expected a sum of 1, got 0.5"),
        ({"weights": [1.0]}, "expected 2 detectors and weights, got 2, 1"),
        ({"detectors": [SHA, None]}, "detectors: expected a hash for each of the members that have a detector"),
        ({"detectors": [None, "short"]}, "outliers.detectors.1: String should match"),
        ({"reference": []}, "outliers.reference: Tuple should have at least 1 item"),
        ({"reference": [0.0, -1.5, 0.25, 2.0]}, "reference: expected ascending scores"),
        ({"patients": 3}, "patients: expected 4, one per reference image, got 3"),
        ({"counts": [1.0]}, "counts: expected 4, one per reference image, got 1"),
        ({"counts": [0.5, 1, 1, 1]}, "counts: expected a sum of 4 patients, got 3.5"),
        ({"counts": [0, 1, 1, 1]}, "outliers.counts.0: Input should be greater than 0"),
        ({"split": "test"}, "outliers.split: Input should be 'calibration', 'validation' or 'site'"),
        ({"members": [True], "detectors": [SHA], "weights": [1.0]}, "outliers: 1 members for 2 of the ensemble"),
    ],
)
def test_an_outlier_test_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(ensemble(version=2, outliers=outliers(**changes))))
    with pytest.raises(MetadataError) as caught:
        read_ensemble(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_outlier_test_needs_version_2(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(ensemble(outliers=outliers())))
    with pytest.raises(MetadataError, match="version: expected 2 for these keys, got 1"):
        read_ensemble(path)


def test_a_reference_is_sorted_by_score_and_counted_by_patient() -> None:
    rule = OutlierRule.model_validate(outliers())
    several = rule.with_reference([0.5, -1.0, 2.0, 0.1], [7, 3, 7, 9])
    np.testing.assert_allclose(several.reference, [-1.0, 0.1, 0.5, 2.0], atol=3e-3)
    assert (several.counts, several.patients) == ((1.0, 1.0, 0.5, 0.5), 3)
    assert several.model_copy(update={"reference": (), "counts": None, "patients": 4}) == rule.model_copy(
        update={"reference": ()}
    )
    assert rule.with_reference([0.5, -1.0], [0, 1]).counts is None


def test_an_image_of_the_reference_does_not_exceed_itself_through_rounding() -> None:
    """Of other programs, which differ by less than 1e-4."""
    rng = np.random.default_rng(0)
    scores = rng.standard_t(2, 200) * 3
    rule = OutlierRule.model_validate(outliers()).with_reference(scores, np.arange(200))
    test = outlier_test_from_ensemble({"outliers": rule.model_dump()})
    assert test is not None
    noise = 1 + 1e-4 * rng.uniform(-1, 1, 200)
    p_values = test.test(np.stack([np.zeros(200), scores * noise], axis=1))[0]
    exact = (1 + np.count_nonzero(scores[None] >= scores[:, None], axis=1)) / 201
    assert (p_values >= exact - 1e-12).all()
    assert np.mean(p_values - exact) < 0.002
