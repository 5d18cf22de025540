"""The comparison of folds with one split, and the simulation of coverage, on few images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.benchmarks.claims.folds.__main__ import compare_draws, folds
from plurum.benchmarks.claims.folds.coverage import WAYS, coverage, simulate
from tests.training.data_files import digit_arrays, write_mnist


@pytest.mark.slow
def test_both_sides_are_measured_once(report_of: Callable[..., Any], tmp_path: Path) -> None:
    write_mnist(tmp_path / "digits", digit_arrays())
    how: dict[str, Any] = {"images": 150, "members": 2, "epochs": 2, "draws": 1}
    report = report_of(folds, work=tmp_path / "work", fashion=tmp_path / "digits", **how)
    (one,) = report["sides"].values()
    assert one["difference"] == pytest.approx(one["folds_nll"] - one["split_nll"])
    assert one["interval"][0] <= one["difference"] <= one["interval"][1]
    # Finished stages are not run again.
    stage = tmp_path / "work" / "draw-0" / "folds.npy"
    np.save(stage, np.load(stage) + 1)
    page = tmp_path / "page.md"
    page.write_text("<!-- draws -->\n<!-- /draws -->\n")
    again = report_of(folds, work=tmp_path / "work", fashion=tmp_path / "digits", page=page, **how)
    assert again["sides"]["draw 1"]["difference"] == pytest.approx(one["difference"] + 1)
    assert f"| draw 1 | {one['split_nll']:.4f} |" in page.read_text()


def test_the_mean_of_draws_has_an_interval_that_covers_the_draws() -> None:
    rng = np.random.default_rng(0)
    split = rng.gamma(1.0, 0.4, (3, 500))
    found = compare_draws(split, split + np.array([[-0.02], [0.0], [0.05]]))
    assert list(found) == ["draw 1", "draw 2", "draw 3", "mean of the draws"]
    # Within a draw, all images differ by as much.
    assert found["draw 1"]["interval"] == pytest.approx([-0.02, -0.02])
    low, high = found["mean of the draws"]["interval"]
    assert low < -0.02 < 0.05 < high


def test_sets_fitted_to_the_served_vote_cover_what_they_promise() -> None:
    found = simulate(60, 5, 150, studies=20)
    assert list(found) == list(WAYS)
    # The mean over studies varies by a standard error of some 0.7 %.
    assert found["calibration images"]["coverage"] > 0.9 - 4 * found["calibration images"]["error"]
    assert all(1 <= one["classes"] <= 3 for one in found.values())


def test_the_simulation_prints_a_row_for_each_way(report_of: Callable[..., Any]) -> None:
    report = report_of(coverage, studies=2, folds=2, calibration=60, images=[60])
    assert list(report["found"]) == [f"60, {way}" for way in WAYS]
