from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.cascades.cost import cost


@pytest.mark.triton
@pytest.mark.parametrize(("library", "precision"), [("onnxruntime", "fp32"), ("openvino", "int8")])
def test_both_sides_are_served(report_of: Callable[..., Any], tmp_path: Path, library: str, precision: str) -> None:
    how = {"library": library, "precision": precision}
    report = report_of(cost, work=tmp_path, arch=["test_resnet", "test_vit"], size=32, turns=6, seconds=0.2, **how)
    assert list(report["percent"]) == ["all in doubt", "1 of 4 in doubt"]
    for case, one in report["percent"].items():
        assert one["median"] <= one["upper"]
        assert all(len(turns) == 6 and min(turns) > 0 for turns in report["images_per_s"][case].values())
