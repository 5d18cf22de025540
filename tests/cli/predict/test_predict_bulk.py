"""`plurum predict` with many images: saving, resuming and progress, in a separate process with a real server."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plurum.client import EnsembleClient, patients_from_answers
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from tests.client.relay import Relay

pytestmark = pytest.mark.triton
COMMAND = [sys.executable, "-m", "plurum", "predict"]


def predict(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *map(str, arguments)], input=given, capture_output=True, check=False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scans(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three hundred images."""
    folder = tmp_path_factory.mktemp("scans")
    for index, pixels in enumerate(np.array(run.pixels()[:300])):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture
def way(served: Server) -> Iterator[Relay]:
    """Relay to the server that can be cut.

    Over HTTP, like every test here that breaks off what is under way: Triton can crash when that was gRPC, and others'
    tests ask the same server.
    """
    with Relay(served.urls.http.removeprefix("http://")) as relay:
        yield relay


def start_run(out: Path, *arguments: object, images: int) -> subprocess.Popen[bytes]:
    """Start a run, and return when this many predictions are saved."""
    command = [*COMMAND, *map(str, arguments), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal, until = out.with_name(f".{out.name}.partial"), time.monotonic() + 60
    while not journal.is_file() or journal.read_bytes().count(b"\n") <= images:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_killed_run_resumes(served: Server, scans: Path, tmp_path: Path, suffix: str) -> None:
    out, options = tmp_path / f"out{suffix}", (scans, "--url", served.urls.http, "--batch-size", 1, "--concurrency", 1)
    with start_run(out, *options, images=20) as process:
        process.kill()
        process.communicate()
    assert not out.exists()
    done = predict(*options, "--out", out, "--json")
    assert done.returncode == 0
    before = int(done.stderr.split(b"resuming: ")[1].split(b" of 300 images already have predictions\n")[0])
    assert before >= 20
    # Images with predictions are not sent again.
    assert len(done.stdout.splitlines()) == 300 - before
    assert done.stderr.splitlines()[-1].startswith(b"300 classified, ")
    readers: dict[str, Any] = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    frame = readers[suffix](out) if suffix in readers else pd.read_json(out, lines=True)
    assert frame["path"].tolist() == sorted(str(path) for path in scans.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_interrupted_run_says_how_to_resume(served: Server, scans: Path, tmp_path: Path) -> None:
    options = (scans, "--url", served.urls.http, "--batch-size", 1, "--concurrency", 1)
    with start_run(tmp_path / "out.csv", *options, images=20) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b" of 300 images are done; run the same command again to resume\n" in said


def test_a_server_that_comes_back_loses_nothing(scans: Path, way: Relay, tmp_path: Path) -> None:
    with start_run(
        tmp_path / "out.csv", scans, "--url", f"http://{way.address}", "--batch-size", 2, images=20
    ) as process:
        way.cut()
        timer = threading.Timer(1.0, way.mend)
        timer.start()
        _, said = process.communicate(timeout=60)
        timer.join()
    assert process.returncode == 0, said
    assert [row["path"] for row in rows(tmp_path / "out.csv")] == sorted(map(str, scans.iterdir()))
    assert all(row["label"] for row in rows(tmp_path / "out.csv"))


def test_an_unavailable_server_ends_with_code_3_and_another_predicts_the_rest(
    served: Server, scans: Path, way: Relay, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with start_run(
        out, scans, "--url", f"http://{way.address}", "--batch-size", 2, "--timeout", 1, images=20
    ) as process:
        way.cut()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    (line,) = said.decode().splitlines()
    # Cut while it connects, or while it waits for a response.
    assert line.startswith(("plurum: no HTTP server responds at", "plurum: the server at 127.0.0.1"))
    assert line.endswith(" of 300 images are done; run the same command again to resume")
    assert not out.exists()
    assert predict(scans, "--url", served.urls.grpc, "--out", out).returncode == 0
    assert len({row["path"] for row in rows(out)}) == len(rows(out)) == 300


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_loses_nothing(repository: Path, scans: Path, tmp_path: Path) -> None:
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as first:
        port = int(first.urls.grpc.rpartition(":")[2])
        options = (scans, "--url", first.urls.grpc, "--batch-size", 1, "--concurrency", 1)
        process = start_run(tmp_path / "out.csv", *options, images=20)
        first.stop(drain=False)
    with process, Server(repository, ServerSettings(http_port=0, grpc_port=port, metrics_port=0)):
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert [row["path"] for row in rows(tmp_path / "out.csv")] == sorted(map(str, scans.iterdir()))


def test_only_images_without_a_prediction_are_sent_again(served: Server, scans: Path, tmp_path: Path) -> None:
    for name in ("000.png", "001.png"):
        (tmp_path / name).write_bytes((scans / name).read_bytes())
    (tmp_path / "002.png").write_text("no image")
    out, options = tmp_path / "out.csv", (tmp_path, "--url", served.urls.grpc, "--json")
    done = predict(*options, "--out", out)
    assert done.returncode == 1
    assert [bool(row["error"]) for row in rows(out)] == [False, False, True]
    (tmp_path / "002.png").write_bytes((scans / "002.png").read_bytes())
    done = predict(*options, "--out", out)
    assert done.returncode == 0
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [str(tmp_path / "002.png")]
    assert [bool(row["error"]) for row in rows(out)] == [False] * 3
    assert not list(tmp_path.glob(".out*"))


def test_answers_of_another_ensemble_are_refused_in_one_line(served: Server, scans: Path, tmp_path: Path) -> None:
    head = {"classes": ["CE", "LAA"], "ensemble": "another", "format": ".csv"}
    (tmp_path / ".out.csv.partial").write_text(json.dumps(head) + "\n")
    options = (scans, "--url", served.urls.grpc, "--out", tmp_path / "out.csv")
    done = predict(*options)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "expected predictions of the same classes and ensemble, got those of another" in line
    assert predict(*options, "--fresh").returncode == 0


@pytest.mark.parametrize("between", [b"\n", b"\0"])
def test_paths_come_from_standard_input(served: Server, scans: Path, between: bytes) -> None:
    names = [os.fsencode(scans / name) for name in ("007.png", "003.png")]
    done = predict("-", "--url", served.urls.grpc, "--json", given=between.join(names) + between)
    assert done.returncode == 0
    assert [json.loads(line)["path"].encode() for line in done.stdout.splitlines()] == names


def test_a_pattern_in_quotes(served: Server, scans: Path) -> None:
    done = predict(f"{scans}/**/00[3-5].png", "--url", served.urls.grpc, "--json")
    assert [Path(json.loads(line)["path"]).name for line in done.stdout.splitlines()] == [
        "003.png",
        "004.png",
        "005.png",
    ]


def test_patients_of_a_manifest_have_an_answer_each(served: Server, run: Run, scans: Path, tmp_path: Path) -> None:
    names = [f"{index:03}" for index in range(12)]
    truth = [run.table().sources[0] and run.ensemble().classes[label] for label in run.table().labels[:12]]
    lines = [f"{scans / name},p{index % 3},{truth[index]}" for index, name in enumerate(names)]
    (tmp_path / "cases.csv").write_text("\n".join(["image,case_id,target", *lines, f"{scans}/gone,p2,{truth[0]}"]))
    out, patients = tmp_path / "out.csv", tmp_path / "patients.csv"
    options = (tmp_path / "cases.csv", "--url", served.urls.grpc, "--out", out, "--patients", patients)
    done = predict(*options, "--patient-rule", "majority")
    assert done.returncode == 1
    assert [row["patient"] for row in rows(out)] == [f"p{index % 3}" for index in range(12)] + ["p2"]
    assert [row["expected"] for row in rows(out)] == [*truth, truth[0]]
    with EnsembleClient(served.urls.grpc) as client:
        answers = client.predict([scans / f"{name}.png" for name in names])
        classes = client.served.classes
    expected = patients_from_answers([f"p{index % 3}" for index in range(12)], answers, classes, "majority")
    found = rows(patients)
    assert [(row["patient"], row["label"], row["images"], row["failed"]) for row in found] == [
        (one.patient, one.label, "4", "1" if one.patient == "p2" else "0") for one in expected
    ]
    assert [float(row["confidence"]) for row in found] == pytest.approx([one.confidence for one in expected], abs=2e-6)
    # The table of patients follows that of images.
    assert [line.split()[0] for line in done.stdout.decode().splitlines()[-4:]] == ["patient", "p0", "p1", "p2"]
    right = sum(answer.label == label for answer, label in zip(answers, truth, strict=True))
    assert f"; {right / 12:.1%} of 12 labelled images are correct\n" in done.stderr.decode()


def test_a_long_table_ends_and_says_so(served: Server, scans: Path) -> None:
    done = predict(scans, "--url", served.urls.grpc)
    assert len(done.stdout.splitlines()) == 101
    assert b"and 200 more rows; use --out FILE or --json to get all\n" in done.stderr


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(served: Server, scans: Path) -> None:
    script = "import plurum.cli.predict.progress as one; one._LINE_S = 0.01; from plurum.cli.main import run; run()"
    command = [sys.executable, "-c", script, "predict", str(scans), "--url", served.urls.grpc, "--json"]
    said = subprocess.run(command, capture_output=True, check=True).stderr.decode().splitlines()
    assert len(said) > 1
    assert all(" of 300 images, " in line and "/s" in line for line in said[:-1])


def test_memory_does_not_grow_with_answers(served: Server, scans: Path) -> None:
    """Memory does not grow with predictions, only with paths: 3,000 images need no more than 300."""
    script = """
import resource, sys, tracemalloc
from pathlib import Path
from plurum.client import EnsembleClient, PatientPool, listing_from_names
from plurum.client.bulk.bulk_run import BulkRun, BulkTotals
tracemalloc.start()
url, folder = sys.argv[1:]
with EnsembleClient(url) as client:
    client.predict([next(Path(folder).iterdir())])
    for times in (1, 10):
        listing = listing_from_names([folder])
        for turn in range(1, times):
            for path in list(listing)[:300]:
                listing.add(f"{folder}/{'./' * turn}{Path(path).name}")
        bulk_run = BulkRun(listing, BulkTotals(PatientPool(client.served.classes)))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert sum(1 for _ in bulk_run.answers(client, 8)) == 300 * times
        print(tracemalloc.get_traced_memory()[1] - before)
"""
    command = [sys.executable, "-c", script, served.urls.grpc, str(scans)]
    few, many = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert many < few + 300_000
