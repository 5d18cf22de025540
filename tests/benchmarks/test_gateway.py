"""The benchmark of the gateway: what it compares, and that it runs as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.benchmarks.claims.gateway import added_ms, ratios

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
def test_it_runs_and_says_what_it_ran_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plurum.benchmarks.claims.gateway", "--work", str(tmp_path)]
    outcome = subprocess.run(
        [*command, "--requests", "5", "--rounds", "0"], capture_output=True, text=True, check=False, timeout=200
    )
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    for name in ("median", "percentile_10"):
        latencies = report[name]["latency_ms"]
        assert set(latencies) == set(WAYS)
        assert report[name]["added_ms"] == pytest.approx(added_ms(latencies), abs=2e-3)
    assert report["machine"]["cores"] >= 1
    assert "one client, small members" in outcome.stderr
