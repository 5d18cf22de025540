"""`plurum drift`: predictions in files, a baseline, and the counts of a real server."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from plurum.client import EnsembleClient, answers_report
from plurum.figures import Drift
from plurum.run import Run
from plurum.serving import Server
from plurum.spec import Baseline, write_metadata
from tests.cli.command_line import CommandLine
from tests.serving.servers import FREE

COLUMNS = "path,patient,label,confidence,review,entropy,disagreement,prediction_set,p_CE,p_LAA,error"


def write(path: Path, seed: int, confidence: float, images: int = 80) -> Path:
    """Write predictions in the format of `plurum predict --out`, two per patient."""
    rng = np.random.default_rng(seed)
    lines = [COLUMNS]
    for image in range(images):
        label, sure = ("CE", "LAA")[rng.integers(2)], min(1.0, max(0.5, rng.normal(confidence, 0.05)))
        pair = (sure, 1 - sure) if label == "CE" else (1 - sure, sure)
        cells = (label, f"{sure:.6f}", "false", "0.1", f"{rng.random():.6f}", label, *(f"{one:.6f}" for one in pair))
        lines.append(",".join((f"{image}.png", f"{seed}/{image // 2}", *cells, "")))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write(tmp_path / "reference.csv", 0, 0.8)


def test_predictions_like_the_reference_give_no_alarm(reference: Path, tmp_path: Path, plurum: CommandLine) -> None:
    other = write(tmp_path / "other.csv", 1, 0.8)
    printed = plurum.said("drift", reference, other)
    assert "No drift found: the predictions don't differ significantly from the reference (p = " in printed
    assert "corrected for 5 outputs, at alpha 0.01)" in printed


def test_drift_has_an_exit_code_a_page_and_a_plot(reference: Path, tmp_path: Path, plurum: CommandLine) -> None:
    out = tmp_path / "report"
    paths = [write(tmp_path / f"{seed}.csv", seed, 0.7) for seed in (1, 2)]
    code, printed, err = plurum.ended("drift", reference, *paths, "--out", out, "--seed", 3)
    assert (code, err) == (1, "")
    assert "Drift: the predictions differ from the reference (p = 0.0010, corrected for 5 outputs" in printed
    assert "Most changed: confidence by 0." in printed
    assert f"report: {out / 'drift.html'}" in printed
    saved = Drift.model_validate_json((out / "drift.json").read_bytes())
    assert (saved.images, saved.units, saved.unit, saved.seed) == ((80, 160), (40, 80), "patients", 3)
    assert saved.answers == tuple(map(str, paths))
    assert (out / "drift.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "drift.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "random permutations of patients" in page
    code, printed, _ = plurum.ended("drift", reference, *paths, "--json", "--seed", 3)
    assert code == 1
    assert Drift.model_validate_json(printed) == saved


def with_baseline(run: Run, folder: Path, confidence: float) -> Path:
    """Write an ensemble.json whose baseline is of predictions with this confidence."""
    limits = (0.2, 0.4, 0.6, 0.8)
    shares = np.bincount([int(np.searchsorted(limits, confidence))], minlength=5)
    baseline = Baseline(
        images=400,
        class_shares=(0.1,) * 10,
        confidence_limits=limits,
        confidence_shares=tuple(shares.astype(float).tolist()),
        review_share=0.5,
        dissent_shares=(0.1, 0.1),
    )
    ensemble = run.ensemble().model_copy(update={"baseline": baseline})
    folder.mkdir(exist_ok=True)
    for path in [*folder.rglob("ensemble.json")] or [folder / "ensemble.json"]:
        write_metadata(path, ensemble)
    return folder


def predictions(server: Server, pixels: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], out: Path) -> Path:
    with EnsembleClient(server.urls.grpc, model="ensemble_pixels") as client:
        found = client.predict(pixels)
        with answers_report(out, client.served.classes) as report:
            for number, answer in enumerate(found):
                report.add(f"{number}.png", answer)
    return out


def wait_for_counts(plurum: CommandLine, *words: object) -> Drift:
    """Return the result once all 80 predictions are counted, which takes up to a second."""
    deadline = time.monotonic() + 20
    while True:
        code, printed, err = plurum.ended(*words)
        found = Drift.model_validate_json(printed)
        assert (code, err) == (1, "")
        if found.images[1] == 80 or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.mark.triton
def test_a_servers_files_and_counts_are_tested(run: Run, repository: Path, tmp_path: Path, plurum: CommandLine) -> None:
    pixels = [np.array(run.pixels()[row]) for row in range(80)]
    served = with_baseline(run, shutil.copytree(repository, tmp_path / "repository"), 0.99)
    (served / "export.json").unlink()
    with Server(served, FREE) as server:
        first = predictions(server, pixels[:40], tmp_path / "first.csv")
        second = predictions(server, pixels[40:], tmp_path / "second.parquet")
        address = server.urls.metrics.split("/")[2]
        counted = wait_for_counts(plurum, "drift", served, "--metrics", address, "--json")
        by_file = plurum.ended("drift", served, first, second, "--json")
        # A run that was fitted again is not the release that is served.
        other = with_baseline(run, tmp_path / "other", 0.5)
        refused = plurum.refused("drift", other / "ensemble.json", "--metrics", address)
    assert by_file[::2] == (1, "")
    found, files = counted, Drift.model_validate_json(by_file[1])
    assert found.images == files.images == (400, 80)
    assert found.answers_labels == files.answers_labels
    assert found.answers_confidence == files.answers_confidence
    assert [shift.p_value for shift in found.shifts] == [shift.p_value for shift in files.shifts]
    assert "expected predictions of release" in refused
    code, printed, _ = plurum.ended("drift", first, second, "--json")
    assert code == 0
    assert "No patient is known" in json.loads(printed)["notes"][0]


def test_what_can_not_be_tested_is_one_line(run: Run, reference: Path, tmp_path: Path, plurum: CommandLine) -> None:
    assert "ANSWERS: expected files of predictions or --metrics, got none" in plurum.refused("drift", reference)
    both = plurum.refused("drift", reference, reference, "--metrics", "127.0.0.1:1")
    assert "got both" in both
    served = with_baseline(run, tmp_path / "served", 0.5)
    assert "no metrics at 127.0.0.1:1" in plurum.refused("drift", served, "--metrics", "127.0.0.1:1")
    for address in ("file:///etc/passwd", "ftp://host", "http://[", "127.0.0.1:0"):
        assert "--metrics: expected HOST:PORT" in plurum.refused("drift", served, "--metrics", address)
    assert "got the file" in plurum.refused("drift", reference, "--metrics", "127.0.0.1:1")
    assert "can't be read" in plurum.refused("drift", reference, tmp_path / "nothing.csv")
    assert "folder.json can't be read" in plurum.refused("drift", tmp_path / "folder.json", reference)
    assert "ensemble.json can't be read" in plurum.refused("drift", tmp_path, reference)
    assert "expected the classes of" in plurum.refused("drift", served, reference)
    answers = predictions_of(run, tmp_path / "digits.csv")
    assert "expected an ensemble with a baseline" in plurum.refused("drift", run.path, answers)
    assert "--permutations: expected" in plurum.refused("drift", reference, reference, "--permutations", 99)
    (tmp_path / "file").write_text("")
    refused = plurum.refused("drift", reference, reference, "--out", tmp_path / "file")
    assert "name a folder for the report" in refused


def predictions_of(run: Run, path: Path) -> Path:
    """Write a prediction for the run's classes."""
    from plurum.client import Prediction

    probabilities = dict.fromkeys(run.ensemble().classes, 0.1)
    label = run.ensemble().classes[0]
    answer = Prediction(label, 0.1, probabilities, 2.3, 0.0, probabilities, {}, (label,), review=True)
    with answers_report(path, run.ensemble().classes) as report:
        report.add("a.png", answer)
    return path
