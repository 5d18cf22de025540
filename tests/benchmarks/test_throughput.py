"""The benchmarks of what serving costs: throughput, a tuned repository, metrics; and of exported graphs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.engines import engines
from plurum.benchmarks.claims.fused import fused
from plurum.benchmarks.claims.metrics_cost import difference, metrics_cost
from plurum.benchmarks.claims.precision import precision
from plurum.benchmarks.claims.throughput import compare_best
from plurum.benchmarks.claims.tune_efficiency import ideal_p99, ratios
from plurum.benchmarks.tools.command import TINY_ARCHS
from plurum.benchmarks.tools.turns import measure
from tests.benchmarks.programs import run_benchmark
from tests.docs.pages import text_of


def test_the_best_served_case_is_compared_with_the_best_plain_loop() -> None:
    figures = {
        "in-process loop, 1 thread": [10.0, 11.0, 90.0],
        "in-process loop, 2 threads": [20.0, 18.0, 1.0],
        "in-process, one image a core": [30.0, 30.0, 30.0],
        "served, 1 clients": [9.0, 9.0, 9.0],
        "served, 8 clients": [17.0, 17.1, 16.0],
    }
    assert compare_best(figures) == {
        "ratio": round(17 / 18, 4),
        "served": "served, 8 clients",
        "local": "in-process loop, 2 threads",
    }


def test_every_case_is_warmed_up_and_has_its_turn_in_every_round() -> None:
    turns: list[tuple[str, float]] = []

    def take_turn(name: str, seconds: float) -> float:
        turns.append((name, seconds))
        return float(len(turns))

    figures = measure({name: partial(take_turn, name) for name in "abc"}, 4, 2.5, lambda _: None)
    assert turns[:3] == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    rounds = [tuple(name for name, seconds in turns[start : start + 3]) for start in range(3, 15, 3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 4
    assert len(set(rounds)) > 1
    assert {seconds for _, seconds in turns[3:]} == {2.5}
    # The first three figures were the warm-up's.
    assert sorted(value for values in figures.values() for value in values) == list(range(4, 16))


@pytest.mark.triton
def test_the_command_of_the_page_measures_throughput(work: Path) -> None:
    assert "\npython -m plurum.benchmarks.claims.throughput\n" in text_of("measuring.md")
    options = ("--work", work, "--arch", "test_resnet", "--size", 32, "--rounds", 1, "--seconds", 0.1)
    report = json.loads(run_benchmark("claims.throughput", *options).stdout)
    assert report["ratio"] > 0
    assert report["members"] == ["test_resnet"]
    served = report["images_per_s"][report["served"]][0]
    local = report["images_per_s"][report["local"]][0]
    assert report["ratio"] == pytest.approx(served / local, abs=1e-3)
    assert "served, 16 clients" in report["images_per_s"]


def test_the_ratio_is_the_best_served_over_the_best_in_process_case() -> None:
    figures = {
        "in-process, onnxruntime, one image a core, batches of 1": [20.0, 19.0, 90.0],
        "in-process, onnxruntime, 2 threads on one image, batches of 1": [15.0, 15.0, 15.0],
        "ensemble_pixels, gRPC, 2 clients": [10.0, 10.0, 10.0],
        "ensemble_pixels, HTTP, 8 clients": [18.0, 19.0, 1.0],
        "ensemble, gRPC, 8 clients": [16.0, 16.0, 16.0],
        "ensemble_pixels by 4, HTTP, 4 clients": [19.0, 19.0, 19.0],
        "ensemble by 4, HTTP, 4 clients": [16.5, 16.5, 16.5],
    }
    found = ratios(figures, decode_s=0.02, cores=2)
    assert found["ensemble_pixels"]["ratio"] == round(18 / 20, 4)
    # An image takes 1/20 s to compute and 0.01 s of each core to decode.
    assert found["ensemble"]["ceiling"] == pytest.approx(1 / 0.06)
    assert found["ensemble"]["ratio"] == round(16 * 0.06, 4)
    assert (found["ensemble_pixels by 4"]["ratio"], found["ensemble by 4"]["ratio"]) == (0.95, 0.99)
    assert found["ensemble_pixels"]["case"] == "ensemble_pixels, HTTP, 8 clients"


def test_the_ideal_queue_is_erlangs() -> None:
    """Of one server: P(wait ≤ t) = (1 - ρ) Σ_{k ≤ t} (ρ(k - t))^k / k! · e^{-ρ(k - t)} (Erlang, 1909)."""
    load = 0.5
    waited = ideal_p99(load, 1) - 1
    terms = ((load * (k - waited)) ** k / math.factorial(k) * math.exp(-load * (k - waited)) for k in range(5))
    assert (1 - load) * sum(one for k, one in enumerate(terms) if k <= waited) == pytest.approx(0.99, abs=0.001)
    assert ideal_p99(0.5, 16) == pytest.approx(1)
    assert 2 < ideal_p99(1, 2) < ideal_p99(load, 1)


def test_differences_are_paired_and_counting_is_a_fraction_of_the_total() -> None:
    figures = {
        "images/s": {"on": [99.0] * 8, "off": [100.0] * 8},
        "total": {"on": [50.5, 60.6] * 4, "off": [50.0, 60.0] * 4},
        "counting": {"on": [2.5] * 8, "off": [2.0] * 8},
    }
    assert difference(figures, "images/s")["median"] == -1
    assert difference(figures, "total") == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert difference(figures, "counting")["low"] == pytest.approx(100 * 0.5 / 60, abs=1e-3)


@pytest.mark.triton
def test_both_sides_are_served(report_of: Callable[..., Any], work: Path) -> None:
    report = report_of(metrics_cost, work=work, arch=["test_resnet"], size=32, turns=6, seconds=0.2)
    for figure in ("images/s", "total", "counting"):
        sides = report["figures"][figure]
        assert all(len(sides[side]) == 6 and min(sides[side]) > 0 for side in ("on", "off"))
        one = report["percent"][figure]
        assert one["low"] <= one["median"] <= one["high"]


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
    report = report_of(fused, work=work, arch=["test_resnet"], size=32, clients=[1, 3], rounds=1, seconds=0.2)
    assert list(report["figures"]) == ["chain", "fused", "fused, a core each", "fused, all cores"]
    for way in report["figures"].values():
        assert list(way) == ["1", "3"]
        assert all(0 < one["p50_ms"] <= one["p99_ms"] and one["images_per_s"] > 0 for one in way.values())
    assert not list(work.glob("way_*"))


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
