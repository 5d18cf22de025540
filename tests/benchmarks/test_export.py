"""The benchmarks of exported graphs: engines, the fused graph, and precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.engines import engines
from plurum.benchmarks.claims.fused import fused
from plurum.benchmarks.claims.precision import precision
from plurum.benchmarks.tools.command import TINY_ARCHS


@pytest.mark.slow
def test_all_kinds_of_architectures_build_and_fp16_is_smaller(report_of: Callable[..., Any], tmp_path: Path) -> None:
    """Residual, squeeze-and-excite, normaliser-free, ConvNeXt and transformer members, and three of them fused."""
    archs = ["resnet18", "test_efficientnet", "test_nfnet", "test_convnext", "test_vit"]
    rows = report_of(engines, work=tmp_path, arch=archs, size=160)["engines"]
    assert list(rows) == [*archs, "fused"]
    for name, row in rows.items():
        assert row["engine_fp16"] < row["engine_fp32"], name
        assert row["onnx_fp16"] < 0.6 * row["onnx_fp32"], name
        assert row["difference"] < 0.01, name
        assert row["largest"] < 65504 / 2, name
    # Engines of members this small are mostly kernels.
    assert rows["resnet18"]["engine_fp16"] < 0.75 * rows["resnet18"]["engine_fp32"]
    # All three are in it.
    assert rows["fused"]["onnx_fp16"] > 0.99 * sum(rows[arch]["onnx_fp16"] for arch in archs[:3])


@pytest.mark.triton
def test_the_fused_graph_beside_the_chain(report_of: Callable[..., Any], work: Path) -> None:
    report = report_of(fused, work=work, arch=["test_resnet"], size=32, rounds=1, seconds=0.2)
    chain, graph = (report["latency_ms"][model][0] for model in ("ensemble_pixels", "ensemble_fused"))
    assert report["ratio"] == pytest.approx(chain / graph, abs=1e-3)


@pytest.mark.slow
@pytest.mark.triton
def test_precisions_beside_fp32(report_of: Callable[..., Any], tmp_path: Path) -> None:
    report = report_of(precision, work=tmp_path, arch=TINY_ARCHS, size=32, epochs=2, rounds=1, seconds=0.2)
    assert report["test_images"] >= 1000
    rates = report["images_per_s"]
    assert report["ratio"] == pytest.approx(rates["auto"][0] / rates["fp32"][0], abs=1e-3)
    assert all(0 <= accuracy <= 1 for accuracy in report["accuracy"].values())
    assert report["accuracy"]["auto"] >= report["accuracy"]["fp32"] - 0.02
    assert "ms" in report["artefacts"]["auto"]["test_resnet"]
