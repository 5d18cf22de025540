"""`plurum bench` in a separate process, with the real perf_analyzer and a real server."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from plurum.benchmarks.bench.perf_analyzer import find_perf_analyzer, set_up_perf_analyzer
from plurum.errors import ServerError
from plurum.serving import Server

FILES = {"bench.json", "bench.csv", "latency_throughput.png", "breakdown.png"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "plurum", "bench", *map(str, arguments)]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120)


def command_line(process: int) -> str:
    # The process may have exited since it was listed.
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def _perf_analyzer() -> None:
    try:
        _ = find_perf_analyzer() or set_up_perf_analyzer()
    except ServerError as error:
        pytest.skip(str(error))


@pytest.mark.triton
@pytest.mark.usefixtures("_perf_analyzer")
def test_a_repository_is_measured_and_compared_with_itself(repository: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (50, 40), colour).save(scans / name)
    loads = ("--concurrency", "2", "--rate", "60", "--seconds", "0.6", "--repeats", "2")
    done = bench(repository, *loads, "--model", "ensemble", "--model", "resnet10t", "--images", scans, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == FILES
    assert f"2 images of {scans}" in done.stdout
    with (out / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert all(0 < float(row["p50_ms"]) <= float(row["p99_ms"]) for row in rows)
    found = json.loads((out / "bench.json").read_text())
    assert found["versions"]["triton_server"]
    chain = next(one for one in found["breakdowns"] if one["case"]["target"]["model"] == "ensemble")
    assert [step["model"] for step in chain["steps"]] == ["preprocess", "resnet10t", "regnetx_002", "voter"]
    assert all(step["infer_ms"] > 0 for step in chain["steps"])
    compared = bench("--compare", out, out)
    assert (compared.returncode, compared.stderr) == (0, "")
    assert compared.stdout.count("no difference beyond noise") == 3 + 3 * 4


@pytest.mark.triton
@pytest.mark.usefixtures("_perf_analyzer")
def test_a_running_server_is_measured_over_both_protocols(served: Server, tmp_path: Path) -> None:
    urls = ("--url", served.urls.grpc, "--url", served.urls.http)
    short = ("--concurrency", "2", "--seconds", "0.3", "--repeats", "1")
    done = bench(*urls, *short, "--model", "ensemble_pixels", "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["case"]["target"]["protocol"] for one in found["measurements"]} == {"grpc", "http"}
    assert all(one["images_per_s"] > 0 for one in found["measurements"])
    assert found["images"].startswith("16 synthetic JPEGs of 32 x 32 pixels")
    missing = bench(*urls, *short, "--model", "absent", "--out", tmp_path / "other")
    assert missing.returncode == 2
    assert missing.stderr.startswith("plurum: the server does not serve absent;")
    assert not (tmp_path / "other").exists()


@pytest.mark.triton
@pytest.mark.usefixtures("_perf_analyzer")
def test_ctrl_c_leaves_no_result_and_no_process(served: Server, tmp_path: Path) -> None:
    words = command("--url", served.urls.grpc, "--model", "ensemble", "--seconds", 30, "--out", tmp_path / "out")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children, deadline = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 30
        # The first call asks for the version, later ones measure.
        while time.monotonic() < deadline:
            running = [int(child) for child in children.read_text().split()]
            if any("--input-data" in command_line(child) for child in running):
                break
            time.sleep(0.05)
        else:
            pytest.fail("perf_analyzer was not started")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{child}").exists() for child in running)
    assert list(tmp_path.iterdir()) == []
