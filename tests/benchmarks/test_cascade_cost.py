from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.cascades.cost import cost
from plurum.benchmarks.claims.cascades.overhead import overhead
from plurum.benchmarks.claims.images.decoding import median_difference
from plurum.errors import SettingsError
from tests.docs.pages import text_of


@pytest.mark.triton
@pytest.mark.parametrize(("library", "precision"), [("onnxruntime", "fp32"), ("openvino", "int8")])
def test_both_sides_are_served(report_of: Callable[..., Any], tmp_path: Path, library: str, precision: str) -> None:
    how = {"library": library, "precision": precision}
    report = report_of(cost, work=tmp_path, arch=["test_resnet", "test_vit"], size=32, turns=6, seconds=0.2, **how)
    assert list(report["percent"]) == ["all in doubt", "1 of 4 in doubt"]
    for case, one in report["percent"].items():
        assert one["median"] <= one["upper"]
        assert all(len(turns) == 6 and min(turns) > 0 for turns in report["images_per_s"][case].values())


@pytest.mark.triton
def test_the_command_of_the_page_tells_where_time_goes(report_of: Callable[..., Any], tmp_path: Path) -> None:
    assert "\npython -m plurum.benchmarks.claims.cascades.overhead" in text_of("cascade.md")
    report = report_of(overhead, work=tmp_path, arch=["test_resnet", "test_vit"], size=32, turns=6, seconds=0.2)
    spent = report["ms_per_image"]["this"]
    assert {"triton", "preprocess", "fused"} <= set(spent)
    assert len(report["total_ms"]["this"]) == 6
    assert min(report["alone_ms"].values()) > 0
    with pytest.raises(SettingsError, match="OTHER/src: expected a folder that holds plurum/images"):
        overhead(work=tmp_path, other=tmp_path)


def test_the_difference_of_versions_has_an_interval() -> None:
    low_first = [100.0, 101.0, 99.0, 100.0, 102.0, 98.0]
    median, low, high = median_difference(low_first, [2 * one for one in low_first])
    assert (median, low, high) == (-50, -50, -50)
