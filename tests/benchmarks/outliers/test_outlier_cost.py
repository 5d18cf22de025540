from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.outliers.cost import cost, loss


def test_a_loss_has_an_upper_limit_over_pairs() -> None:
    rates = {"with": [98.0, 49.5] * 10, "without": [100.0, 50.0] * 10}
    assert loss(rates) == {"median": 1.5, "upper": 2.0}
    assert loss({side: values[:7] * 2 for side, values in rates.items()})["upper"] == 2


@pytest.mark.triton
def test_both_sides_are_served_in_each_precision(report_of: Callable[..., Any], tmp_path: Path) -> None:
    report = report_of(cost, work=tmp_path, arch=["test_resnet"], size=32, turns=6, seconds=0.2)
    assert list(report["percent"]) == [
        f"{model}, {precision}" for precision in ("fp32", "int8") for model in ("ensemble_pixels", "ensemble_fused")
    ]
    for case, one in report["percent"].items():
        assert one["median"] <= one["upper"]
        assert all(len(turns) == 6 and min(turns) > 0 for turns in report["images_per_s"][case].values())
