"""The comparison of folds with one split, and the simulation of coverage, on few images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.benchmarks.claims.folds.__main__ import folds
from plurum.benchmarks.claims.folds.coverage import WAYS, coverage, simulate
from tests.training.data_files import digit_arrays, write_mnist


@pytest.mark.slow
def test_both_sides_are_measured_once(report_of: Callable[..., Any], tmp_path: Path) -> None:
    write_mnist(tmp_path / "digits", digit_arrays())
    how: dict[str, Any] = {"arch": "test_byobnet", "images": 150, "members": 2, "epochs": 2, "draws": 1}
    report = report_of(folds, work=tmp_path / "work", fashion=tmp_path / "digits", **how)
    one, mean = report["sides"]["draw 1"], report["sides"]["mean of the draws"]
    assert one == mean
    assert one["difference"] == pytest.approx(one["folds_nll"] - one["split_nll"])
    assert one["interval"][0] <= one["difference"] <= one["interval"][1]
    # Finished stages are not run again.
    stage = tmp_path / "work" / "draw-0" / "folds.npy"
    np.save(stage, np.load(stage) + 1)
    again = report_of(folds, work=tmp_path / "work", fashion=tmp_path / "digits", **how)
    assert again["sides"]["draw 1"]["difference"] == pytest.approx(one["difference"] + 1)


def test_sets_fitted_to_the_served_vote_cover_what_they_promise() -> None:
    found = simulate(60, 5, 150, studies=20)
    assert list(found) == list(WAYS)
    # The mean over studies varies by a standard error of some 0.7 %.
    assert found["calibration images"]["coverage"] > 0.9 - 4 * found["calibration images"]["error"]
    assert all(1 <= one["classes"] <= 3 for one in found.values())


def test_the_simulation_prints_a_row_for_each_way(report_of: Callable[..., Any]) -> None:
    report = report_of(coverage, studies=2, folds=2, calibration=60, images=[60])
    assert list(report["found"]) == [f"60, {way}" for way in WAYS]
