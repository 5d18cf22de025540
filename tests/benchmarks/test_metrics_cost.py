"""What metrics cost is measured on both sides, and told in percent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.benchmarks.claims.metrics_cost import difference


def test_a_difference_is_that_of_pairs_and_counting_is_told_of_the_whole() -> None:
    figures = {
        "images/s": {"on": [99.0] * 8, "off": [100.0] * 8},
        "total": {"on": [50.5, 60.6] * 4, "off": [50.0, 60.0] * 4},
        "counting": {"on": [2.5] * 8, "off": [2.0] * 8},
    }
    assert difference(figures, "images/s")["median"] == -1
    assert difference(figures, "total") == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert difference(figures, "counting")["low"] == pytest.approx(100 * 0.5 / 60, abs=1e-3)


@pytest.mark.triton
def test_both_sides_are_served_and_asked(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path), "--arch", "test_resnet", "--size", "32", "--turns", "6", "--seconds", "0.2"]
    command = [sys.executable, "-m", "plurum.benchmarks.claims.metrics_cost", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for figure in ("images/s", "total", "counting"):
        sides = report["figures"][figure]
        assert all(len(sides[side]) == 6 and min(sides[side]) > 0 for side in ("on", "off"))
        one = report["percent"][figure]
        assert one["low"] <= one["median"] <= one["high"]
