"""The first benchmark: what it compares, and that it runs as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.benchmarks.claims.throughput import compare
from plurum.benchmarks.tools.turns import measure


def test_the_best_served_case_is_compared_with_the_best_plain_loop() -> None:
    figures = {
        "in-process loop, 1 thread": [10.0, 11.0, 90.0],
        "in-process loop, 2 threads": [20.0, 18.0, 1.0],
        "in-process, one image a core": [30.0, 30.0, 30.0],
        "served, 1 clients": [9.0, 9.0, 9.0],
        "served, 8 clients": [17.0, 17.1, 16.0],
    }
    assert compare(figures) == {
        "ratio": round(17 / 18, 4),
        "served": "served, 8 clients",
        "local": "in-process loop, 2 threads",
    }


def test_every_case_is_warmed_up_and_has_its_turn_in_every_round() -> None:
    turns: list[tuple[str, float]] = []

    def case(name: str) -> object:
        def turn(seconds: float) -> float:
            turns.append((name, seconds))
            return float(len(turns))

        return turn

    figures = measure({name: case(name) for name in "abc"}, 4, 2.5, lambda _: None)  # type: ignore[misc]
    assert turns[:3] == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    rounds = [tuple(name for name, seconds in turns[start : start + 3]) for start in range(3, 15, 3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 4
    assert len(set(rounds)) > 1
    assert {seconds for _, seconds in turns[3:]} == {2.5}
    # The first three figures were the warm-up's.
    assert sorted(value for values in figures.values() for value in values) == list(range(4, 16))


@pytest.mark.triton
def test_it_runs_and_says_what_it_ran_on(tmp_path: Path) -> None:
    options = {"work": tmp_path, "arch": "resnet10t", "size": 32, "rounds": 1, "seconds": 0.1}
    outcome = subprocess.run(
        [sys.executable, "-m", "plurum.benchmarks.claims.throughput"]
        + [part for name, value in options.items() for part in (f"--{name}", str(value))],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["members"] == ["resnet10t"]
    served = report["images_per_s"][report["served"]][0]
    local = report["images_per_s"][report["local"]][0]
    assert report["ratio"] == pytest.approx(served / local, abs=1e-3)
    assert report["machine"]["cores"] >= 1
    assert {"onnxruntime", "triton", "tritonclient", "python"} <= set(report["versions"])
    assert "served, 16 clients" in outcome.stderr
