"""The benchmark of the gateway: its comparisons, and a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.gateway import added_ms, gateway, ratios

WAYS = ("Triton, gRPC", "Triton, HTTP", "gateway, infer", "gateway, /predict")


def test_each_way_through_is_compared_with_each_way_around() -> None:
    assert added_ms(dict(zip(WAYS, (1.0, 0.8, 1.5, 1.6), strict=True))) == {
        "gateway, infer - Triton, gRPC": 0.5,
        "gateway, infer - Triton, HTTP": 0.7,
        "gateway, /predict - Triton, gRPC": 0.6,
        "gateway, /predict - Triton, HTTP": 0.8,
    }
    turns = ([10.0, 20.0, 99.0], [10.0, 10.0, 10.0], [19.0, 19.0, 1.0], [18.0, 0.0, 20.0])
    assert ratios(dict(zip(WAYS, turns, strict=True))) == {
        "gateway, infer / Triton, gRPC": 0.95,
        "gateway, infer / Triton, HTTP": 1.9,
        "gateway, /predict / Triton, gRPC": 0.9,
        "gateway, /predict / Triton, HTTP": 1.8,
    }


@pytest.mark.triton
def test_it_runs(report_of: Callable[..., Any], work: Path) -> None:
    report = report_of(gateway, work=work, requests=5, rounds=0)
    for name in ("median", "percentile_10"):
        latencies = report[name]["latency_ms"]
        assert set(latencies) == set(WAYS)
        assert report[name]["added_ms"] == pytest.approx(added_ms(latencies), abs=2e-3)
