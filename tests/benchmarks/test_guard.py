"""The regression guard: it lets pass what is noise, and fails on a loss."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from plurum.benchmarks.claims.guard import RATIOS, Noise, cost_ratios, guarded_repository, judge, read_noise
from plurum.benchmarks.tools.machine import machine
from plurum.errors import DataError

pytestmark = pytest.mark.timing

HERE: dict[str, str | int | float] = {"processor": "one", "cores": 2, "memory_gb": 8.0, "load_1min": 0.1}


def noise(*values: float) -> Noise:
    return Noise(runs=tuple(dict.fromkeys(RATIOS, value) for value in values), machine=HERE, versions={})


def test_a_limit_lies_beyond_the_worst_run_by_the_distance_of_all() -> None:
    assert noise(2.0, 2.5, 3.0).limits(HERE) == dict.fromkeys(RATIOS, 4.0)


@pytest.mark.parametrize("other", [{"processor": "another"}, {"cores": 64}])
def test_elsewhere_limits_are_half_as_much_again(other: dict[str, str | int | float]) -> None:
    assert noise(2.0, 3.0).limits({**HERE, **other}) == dict.fromkeys(RATIOS, 6.0)
    assert noise(2.0, 3.0).limits({**HERE, "load_1min": 9.0}) == dict.fromkeys(RATIOS, 4.0)


def test_a_burst_is_measured_again_and_passes() -> None:
    runs = iter([{"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 1.0}])
    measured, lost = judge(lambda: next(runs), {"a": 2.0, "b": 2.0})
    assert not lost
    assert len(measured) == 2


def test_a_ratio_beyond_its_limit_in_every_run_is_a_loss() -> None:
    # Each of them was beyond at some time; only one of them was always.
    runs = iter([{"a": 9.0, "b": 9.0}, {"a": 9.0, "b": 1.0}, {"a": 9.0, "b": 9.0}])
    measured, lost = judge(lambda: next(runs), {"a": 2.0, "b": 2.0})
    assert lost == ["a"]
    assert len(measured) == 3


def test_the_noise_beside_the_code_is_of_twenty_runs() -> None:
    found = read_noise()
    assert len(found.runs) >= 20
    for run in found.runs:
        assert run.keys() == RATIOS.keys()
        assert all(math.isfinite(value) and value > 0 for value in run.values())
    limits = found.limits(found.machine)
    assert all(limits[name] > max(run[name] for run in found.runs) for name in RATIOS)
    # What it finds is less than three times as costly as it was.
    assert all(limits[name] < 3 * sorted(run[name] for run in found.runs)[10] for name in RATIOS)


def test_missing_noise_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"guard\.json is missing or broken; .*--calibrate 20"):
        read_noise(tmp_path / "guard.json")
    (tmp_path / "guard.json").write_text(json.dumps({"runs": []}))
    with pytest.raises(DataError, match="missing or broken"):
        read_noise(tmp_path / "guard.json")


@pytest.fixture(scope="module")
def guarded(work: Path) -> Path:
    return guarded_repository(work / "gateway-tiny")


@pytest.mark.triton
def test_serving_costs_no_more_than_it_did(guarded: Path) -> None:
    limits = read_noise().limits(machine())
    measured, lost = judge(lambda: cost_ratios(guarded), limits)
    assert not lost, f"beyond {limits} each time: {measured}"


@pytest.mark.triton
def test_a_voter_that_dawdles_is_found(guarded: Path, tmp_path: Path) -> None:
    slow = shutil.copytree(guarded, tmp_path / "slow")
    model = slow / "voter" / "1" / "model.py"
    begin = "        logits = [self._logits(request) for request in requests]\n"
    assert begin in model.read_text()
    model.write_text(model.read_text().replace(begin, f"        __import__('time').sleep(0.005)\n{begin}"))
    limits, found = read_noise().limits(machine()), cost_ratios(slow)
    assert found["voter"] > limits["voter"], (found, limits)
    assert found["latency"] > limits["latency"], (found, limits)
