"""Requests, results, comparisons and pictures of `plurum bench`; real servers are in tests/cli/test_bench.py."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.bench.comparison import compare_benches
from plurum.benchmarks.bench.observed import breakdown_of
from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer, find_perf_analyzer, set_up_perf_analyzer
from plurum.benchmarks.bench.plots import plots_from_result
from plurum.benchmarks.bench.result import (
    BenchLoad,
    BenchResult,
    Breakdown,
    Case,
    Measurement,
    Step,
    Target,
    csv_from_result,
    read_bench,
)
from plurum.benchmarks.bench.sweep import equal_models
from plurum.benchmarks.tools.requests import encoded_from_folder, input_data, synthetic_images
from plurum.errors import DataError, ImageError, ServerError
from plurum.images import open_image
from plurum.spec import ImageSpec

SPEC = ImageSpec(height=16, width=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TARGET = Target(model="ensemble", protocol="grpc")
ONE, FOUR = (Case(target=TARGET, load=BenchLoad(kind="concurrency", value=value)) for value in (1, 4))
RATE = Case(target=TARGET, load=BenchLoad(kind="rate", value=20))


def result(rates: dict[Case, list[float]], **others: object) -> BenchResult:
    """A bench with these images per second by turn, and latencies that go with them."""
    measurements = [
        Measurement(
            case=case,
            turn=turn,
            images_per_s=rate,
            latency_ms=1000 / rate,
            p50_ms=1000 / rate,
            p90_ms=1100 / rate,
            p95_ms=1200 / rate,
            p99_ms=1500 / rate,
        )
        for case, turns in rates.items()
        for turn, rate in enumerate(turns, start=1)
    ]
    step = Step(model="member", batch=1.5, queue_ms=1, input_ms=0.1, infer_ms=4, output_ms=0.2)
    fields: dict[str, object] = {
        "asked": "REPO",
        "images": "16 synthetic",
        "seconds": 1.0,
        "repeats": len(next(iter(rates.values()))),
        "machine": {"processor": "P", "cores": 2},
        "versions": {"triton_server": "2.51.0"},
        "measurements": measurements,
        "breakdowns": [Breakdown(case=case, outside_ms=1, hop_ms=0.5, steps=(step,)) for case in rates],
    }
    return BenchResult.model_validate(fields | others)


def test_encoded_images_are_sent_with_their_length_in_front_and_pixels_as_the_server_would_make_them() -> None:
    images = synthetic_images(SPEC)
    (entry, *_) = json.loads(input_data(images, SPEC, "IMAGE"))["data"]
    raw = base64.b64decode(entry["IMAGE"]["b64"])
    assert int.from_bytes(raw[:4], "little") == len(images[0]) == len(raw) - 4
    assert raw[4:] == images[0]
    (entry, *_) = json.loads(input_data(images, SPEC, "PIXELS"))["data"]
    assert entry["PIXELS"]["shape"] == [16, 24, 3]
    sent = np.frombuffer(base64.b64decode(entry["PIXELS"]["b64"]), np.uint8).reshape(16, 24, 3)
    assert np.array_equal(sent, np.asarray(open_image(images[0])))
    with pytest.raises(ImageError, match="LOGITS_0"):
        input_data(images, SPEC, "LOGITS_0")


def test_images_of_a_folder_are_sent_as_they_are(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    (tmp_path / "one.png").write_bytes(file.getvalue())
    assert encoded_from_folder(tmp_path) == [file.getvalue()]
    (tmp_path / "two.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"two\.jpg: 8 bytes that are no"):
        encoded_from_folder(tmp_path)


def counted(total: float, queue: float, gather: float, infer: float) -> dict[str, int]:
    """Return Triton's counters of 10 requests with these times in ms, in 5 executions."""
    parts = {"success": total, "queue": queue, "compute_input": gather, "compute_infer": infer, "compute_output": 9.0}
    return {"requests": 10, "images": 10, "executions": 5} | {name: int(ms * 10 * 1e6) for name, ms in parts.items()}


def chained(model: str, inputs: list[str], output: str) -> dict[str, object]:
    return {"model_name": model, "input_map": {name: name for name in inputs}, "output_map": {"out": output}}


def test_members_side_by_side_count_once_in_what_an_ensemble_takes() -> None:
    steps = [
        # Not in the order in which they run.
        chained("voter", ["a", "b"], "VOTE"),
        chained("fast", ["PIXELS"], "a"),
        chained("slow", ["PIXELS"], "b"),
        chained("preprocess", ["IMAGE"], "PIXELS"),
    ]
    counts = {
        "ensemble": counted(20, 0, 0, 0),
        "preprocess": counted(0, 1, 0, 2),
        "fast": counted(0, 0, 0, 3),
        "slow": counted(0, 2, 1, 6),
        "voter": counted(0, 0, 1, 1),
    }
    found = breakdown_of(FOUR, counts, {"ensemble_scheduling": {"step": steps}}, latency_ms=23)
    assert found.outside_ms == pytest.approx(3)
    assert found.hop_ms == pytest.approx(20 - (3 + 9 + 2))
    assert [(step.model, step.batch) for step in found.steps][2] == ("slow", 2.0)
    assert found.steps[2].queue_ms == pytest.approx(2)
    alone = breakdown_of(
        ONE.model_copy(update={"target": Target(model="m", protocol="http")}), {"m": counted(8, 1, 1, 5)}, {}, 9
    )
    assert [alone.outside_ms, alone.hop_ms] == pytest.approx([1, 1])
    with pytest.raises(ServerError, match="counted no request of slow"):
        breakdown_of(FOUR, {**counts, "slow": {}}, {"ensemble_scheduling": {"step": steps}}, 23)


def test_a_fused_ensemble_is_measured_under_one_name() -> None:
    fused, encoded = chained("fused", ["PIXELS"], "INDEX"), chained("preprocess", ["IMAGE"], "PIXELS")
    served = {"ensemble": [encoded, fused], "ensemble_pixels": [fused], "ensemble_fused": [fused]}
    configs: dict[str, dict[str, object]] = {
        name: {"name": name, "ensemble_scheduling": {"step": steps}} for name, steps in served.items()
    }
    assert equal_models(configs) == {"ensemble_fused": "ensemble_pixels"}
    # A chain beside it, and members, which have no steps.
    configs["ensemble_pixels"] = {"ensemble_scheduling": {"step": [chained("voter", ["PIXELS"], "LABEL")]}}
    assert equal_models(configs | {"a": {}, "b": {}}) == {}


def test_a_difference_counts_only_beyond_the_turns_own_scatter() -> None:
    first = result({ONE: [100, 102, 98], FOUR: [200, 260, 150], RATE: [20, 20, 20]})
    second = result({ONE: [120, 122, 118], FOUR: [230, 170, 290], RATE: [20, 20, 20]})
    found = {(one.case, one.field): one for one in compare_benches(first, second).ratios}
    better = found[str(ONE), "images_per_s"]
    assert (better.first, better.second, better.verdict) == (100, 120, "better")
    assert better.low < 1.2 < better.high
    # Less latency is better, too.
    assert found[str(ONE), "p50_ms"].ratio == pytest.approx(1 / better.ratio)
    assert found[str(ONE), "p50_ms"].verdict == "better"
    assert found[str(FOUR), "images_per_s"].verdict == "no difference beyond noise"
    level = found[str(RATE), "images_per_s"]
    assert [level.low, level.high] == pytest.approx([1, 1])
    assert level.verdict == "no difference beyond noise"
    backwards = {(one.case, one.field): one.verdict for one in compare_benches(second, first).ratios}
    assert backwards[str(ONE), "images_per_s"] == backwards[str(ONE), "p99_ms"] == "worse"
    # Given rates have no say in throughput as a whole.
    both = math.sqrt(found[str(ONE), "images_per_s"].ratio * found[str(FOUR), "images_per_s"].ratio)
    assert found["all", "images_per_s"].ratio == pytest.approx(both)


def test_alike_servers_seldom_differ() -> None:
    draws = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        one, other = (result({ONE: list(100 * np.exp(draws.normal(0, 0.1, 4)))}) for _ in range(2))
        verdicts.append(compare_benches(one, other).ratios[0].verdict)
    # 5 % by construction.
    assert 0 < sum(verdict != "no difference beyond noise" for verdict in verdicts) <= 20


def test_cases_of_only_one_result_are_named() -> None:
    first, second = result({ONE: [1, 2]}), result({ONE: [1, 2], FOUR: [3, 4]}, machine={"processor": "Q", "cores": 2})
    found = compare_benches(first, second)
    assert found.only_first == ()
    assert found.only_second == (str(FOUR),)
    assert found.differences == ("processor: P and Q",)
    with pytest.raises(DataError, match="has 1 turn: measure with --repeats 2"):
        compare_benches(first, result({ONE: [1]}))
    with pytest.raises(DataError, match="in common"):
        compare_benches(first, result({FOUR: [1, 2]}))


def test_a_result_is_read_as_it_was_written_and_drawn(tmp_path: Path) -> None:
    one = result({FOUR: [30, 10, 20], ONE: [3, 4, 5], RATE: [2, 2, 2]})
    (tmp_path / "bench.json").write_text(one.model_dump_json())
    assert read_bench(tmp_path) == one
    assert one.cases() == [ONE, FOUR, RATE]
    assert one.median(FOUR, "images_per_s") == 20
    rows = csv_from_result(one).splitlines()
    assert rows[:2] == [
        "model,protocol,load,value,turn,images_per_s,latency_ms,p50_ms,p90_ms,p95_ms,p99_ms",
        "ensemble,grpc,concurrency,4,1,30,33.3333,33.3333,36.6667,40,50",
    ]
    assert len(rows) == 10
    pictures = plots_from_result(one)
    assert set(pictures) == {"latency_throughput", "breakdown"}
    for picture in pictures.values():
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).std() > 5
    with pytest.raises(DataError, match="can't be read"):
        read_bench(tmp_path / "absent")
    (tmp_path / "bench.json").write_text('{"version": 2}')
    with pytest.raises(DataError, match=r"not a result of plurum bench: version"):
        read_bench(tmp_path)


def program(folder: Path, text: str) -> Path:
    path = folder / "perf_analyzer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_perf_analyzer_on_path_is_used_and_a_broken_one_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = program(tmp_path, 'echo "Perf Analyzer Version 2.99.1 (commit x)"')
    assert find_perf_analyzer() == PerfAnalyzer(path, None, "2.99.1")
    program(tmp_path, 'echo "error while loading shared libraries: libx.so" >&2; exit 127')
    with pytest.raises(ServerError, match=r"can't be run: error while loading .* libx\.so; plurum bench --setup"):
        find_perf_analyzer()


def test_the_reason_of_a_failed_measurement_is_reported(tmp_path: Path) -> None:
    binary = program(
        tmp_path, 'echo "Request concurrency: 1"; echo "Thread [0] had error: no memory"; echo bye; exit 1'
    )
    with pytest.raises(
        ServerError, match=r"nothing of ensemble at 4 in flight in .* 100 ms .*: Thread \[0\] had error: no memory$"
    ):
        PerfAnalyzer(binary, None, "").measure(TARGET, "127.0.0.1:1", FOUR.load, tmp_path / "x.json", 0.3)


def test_a_failed_installation_gives_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(ServerError, match=r"pip could not download tritonclient==2\.51\.0; or put a perf_analyzer on"):
        set_up_perf_analyzer()
    assert list((tmp_path / "plurum").iterdir()) == []
