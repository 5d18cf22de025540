"""The benchmarks of servers under load: gateway, overload, garbage, a folder of images, and faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from plurum.benchmarks.bench.perf_analyzer import find_perf_analyzer, set_up_perf_analyzer
from plurum.benchmarks.claims import bulk
from plurum.benchmarks.claims.faults import FAULTS, FaultyServer, faults
from plurum.benchmarks.claims.gateway import added_ms, gateway, ratios
from plurum.benchmarks.claims.overload import TimedResponse, outcome, overload
from plurum.benchmarks.claims.soak import SoakTally, soak
from plurum.benchmarks.tools.background import request_probabilities
from plurum.benchmarks.tools.garbage import GARBAGE
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.client import EnsembleClient
from plurum.errors import ServerError
from tests.benchmarks.programs import run_benchmark

pytestmark = pytest.mark.timing

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
def test_the_cost_of_the_gateway_is_measured(report_of: Callable[..., Any], work: Path) -> None:
    report = report_of(gateway, work=work, requests=5, rounds=0)
    for name in ("median", "percentile_10"):
        latencies = report[name]["latency_ms"]
        assert set(latencies) == set(WAYS)
        assert report[name]["added_ms"] == pytest.approx(added_ms(latencies), abs=2e-3)


def test_throughput_counts_only_responses_within_the_overload() -> None:
    answers = [
        TimedResponse(200, 10, 11),
        TimedResponse(200, 11, 14.5),
        TimedResponse(503, 11, 11.01),
        TimedResponse(0, 12, 19),
        TimedResponse(504, 12, 14),
    ]
    found = outcome(answers, start_s=10, seconds=4, deadline_s=2)
    assert found["sent"] == 5
    assert found["statuses"] == {"0": 1, "200": 2, "503": 1, "504": 1}
    # One came after the end, and late at that; one never came.
    assert found["accepted_per_s"] == 0.25
    assert found["beyond_deadline"] == 2
    assert found["longest_s"] == 7
    assert found["refused_ms"]["median"] == pytest.approx(1005)


@pytest.mark.triton
def test_every_request_gets_a_response_or_a_refusal(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(overload, repository=repository, times=10.0, seconds=4.0, peak_seconds=2.0)
    over = report["overload"]
    assert over["sent"] == pytest.approx(4 * report["offered_per_s"], abs=1)
    assert set(over["statuses"]) <= {"200", "503", "504"}
    assert over["statuses"]["503"] > over["statuses"]["200"]
    assert sum(over["statuses"].values()) == over["sent"]
    assert over["beyond_deadline"] == 0
    assert report["faults"] == {}
    # Members this small cost less than the refusals do, which share the cores with them.
    assert report["share_of_peak"]["before"] > 0.1
    assert report["latency_back_s"] < 10


def test_growth_is_that_of_all_processes_since_the_warm_up() -> None:
    memory = {
        10: {"gateway": 60, "triton": 40},
        50: {"gateway": 900, "triton": 900},
        100: {"gateway": 70, "triton": 41},
    }
    assert SoakTally(memory_bytes=memory).growth == pytest.approx(0.11)


def test_garbage_is_of_many_kinds_and_is_made_anew() -> None:
    (image,) = coloured_jpegs(32, 32, 1)
    assert len(GARBAGE) >= 15
    chance = random.Random(0)
    sent = [make(image, chance).sent for make in GARBAGE.values() for _ in range(2)]
    assert image not in sent
    assert len(set(sent)) > 1.5 * len(GARBAGE)


@pytest.mark.triton
def test_predictions_stay_correct_and_garbage_is_refused(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(soak, repository=repository, requests=600, garbage_share=0.2)
    assert report["wrong"] == {}
    assert report["garbage_missed"] == {}
    assert report["faults"] == {}
    # Every kind had its turn.
    assert set(report["garbage"]) > set(GARBAGE)
    assert report["right"] + sum(report["garbage"].values()) == 600
    # Bodies of half a MiB, of which several are there at once.
    assert report["gateway_peak_bytes"] < 256 << 20
    # Pools fill up at first; a leak of a whole request would show even so.
    assert report["growth"] < 0.25


def test_images_are_all_different(tmp_path: Path) -> None:
    bulk.write_digits(tmp_path, 120, 32)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 120
    assert len({file.read_bytes() for file in files}) == 120


def test_lost_and_repeated_images_are_counted(tmp_path: Path) -> None:
    bulk.write_digits(tmp_path / "scans", 4, 32)
    files = sorted((tmp_path / "scans").rglob("*.jpg"))
    rows = [f"{files[0]},", f"{files[1]},", f"{files[1]},", f"{files[2]},no answer"]
    (tmp_path / "out.csv").write_text("\n".join(["path,error", *rows]))
    assert bulk.count_lost(tmp_path / "scans", tmp_path / "out.csv") == (2, 1)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(600)
def test_no_image_is_lost_or_repeated(report_of: Callable[..., Any], repository: Path) -> None:
    try:
        _ = find_perf_analyzer() or set_up_perf_analyzer()
    except ServerError as error:
        pytest.skip(str(error))
    report = report_of(bulk.bulk, repository=repository, images=400, rounds=1, seconds=1, batch_size=[8], in_flight=[4])
    assert report["ratio_predict"] > 0
    assert report["ratio_predict_started"] > report["ratio_predict"]
    assert [one["fault"] for one in report["faults"]] == [
        "Triton killed",
        "server ended and started again",
        "client killed and started again",
    ]
    assert all((one["lost"], one["repeated"]) == (0, 0) for one in report["faults"])


# The second of a member meets processes of the version before, which live on for a while.
_CHOSEN = ("voter killed", "member killed", "member stopped", "voter hangs", "Triton killed")


@pytest.mark.triton
def test_each_fault_is_detected_and_repaired_within_its_time(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(faults, repository=repository, rounds=1, pause=1.0, fault=list(_CHOSEN))
    assert [one["fault"] for one in report["rounds"]] == list(_CHOSEN)
    for one in report["rounds"]:
        assert 0 < one["noticed_s"] < 10, one
        assert one["noticed_s"] < one["healed_s"] < 20, one
        assert one["longest_s"] < report["deadline_s"] + 2, one
        assert one["answered"] > 0
    # Killing an instance without a request fails none.
    assert sum(one["failed"] for one in report["rounds"]) > 0
    held = report["held_bytes"]
    assert held["after"]["shared_memory"] <= held["before"]["shared_memory"]
    assert held["after"]["memory"] < 1.5 * held["before"]["memory"]


@pytest.mark.triton
def test_an_error_of_one_request_reloads_no_model(repository: Path, tmp_path: Path) -> None:
    with FaultyServer(repository, tmp_path) as watched:
        with pytest.raises(InferenceServerException, match="planted"):
            request_probabilities(watched.urls["http"], watched.pixels, 60.0, request_id="raise")
        assert watched.is_ready()
        with EnsembleClient(watched.urls["http"]) as other:
            assert len(other.predict([watched.pixels])) == 1
        # A warning about every repository without a manifest.
        (line,) = watched.log().splitlines()
        assert "no export.json" in line


def test_an_unknown_fault_is_named() -> None:
    done = run_benchmark("claims.faults", "--fault", "sunspots", code=2)
    assert done.stderr == f"error: --fault: expected one of {', '.join(FAULTS)}, got 'sunspots'.\n"
