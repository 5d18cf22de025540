"""`plurum compare`: wrong use gives one line and exit code 2; one complete run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plurum.benchmarks.compare.report import COMPARISON_FILES
from plurum.run import Run
from tests.cli.command_line import CommandLine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits",), "no architecture to train on digits; name at least one with --arch"),
        (("digits", "--arch", "resnet_18"), "timm has no architecture 'resnet_18'"),
        (("nowhere", "--arch", "resnet18"), "nowhere"),
        (("digits", "--arch", "resnet18", "--checkpoint", "x=y"), "timm has no architecture 'x'"),
        (
            ("digits", "--arch", "resnet18", "--epochs", 0),
            "--epochs: expected a number greater than or equal to 1, got 0",
        ),
        (("RUN", "--epochs", 3, "--pretrained"), "nothing is trained again; leave out --epochs, --pretrained"),
        (("RUN", "--arch", "resnet18"), "no finished member of the architecture 'resnet18'"),
        (("RUN", "--checkpoint", "resnet10t=none.pt"), "none.pt is missing"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    run: Run, arguments: tuple[object, ...], message: str, tmp_path: Path, plurum: CommandLine
) -> None:
    words = [run.path if word == "RUN" else word for word in arguments]
    assert message in plurum.refused("compare", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_it(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    (tmp_path / "out").write_text("mine")
    printed = plurum.refused("compare", run.path, "--out", tmp_path / "out")
    assert "is a file; name a folder for the comparison" in printed
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_architectures_are_trained_and_compared_and_the_second_time_measured_alone(
    tmp_path: Path, plurum: CommandLine
) -> None:
    out = tmp_path / "compared"
    small = ("--epochs", 1, "--rounds", 2, "--seconds", 0.05, "--draws", 100, "--out", out)
    command = ("compare", "digits", "--arch", "test_resnet", "--arch", "test_vit", *small)
    printed = plurum.said(*command)
    assert printed == (out / "comparison_report.txt").read_text() + f"report: {out}/comparison_report.html\n"
    assert {*COMPARISON_FILES, "run", "work"} == {file.name for file in out.iterdir()}
    kept = {file: file.stat().st_mtime_ns for file in (out / "work").rglob("*") if file.is_file()}
    assert len(kept) == 2 * 3
    report = json.loads(plurum.said(*command, "--json"))
    assert kept == {file: file.stat().st_mtime_ns for file in (out / "work").rglob("*") if file.is_file()}
    assert report == json.loads((out / "comparison_results.json").read_bytes())
    first, second = report["compared"]
    assert first["costs"]["parameters"] == Run(out / "run").members()[0].parameters
    assert first["accuracy"]["pytorch"] == first["accuracy"]["onnx_fp32"] == first["metrics"]["accuracy"]
    assert first["costs"]["size_mb"]["onnx_int8"] < 0.5 * first["costs"]["size_mb"]["onnx_fp32"]
    assert first["training_s"] > 0
    (vote,) = report["votes"]
    together = sum(one["speed"]["onnx_fp32"]["latency_ms"]["median"] for one in (first, second))
    assert vote["latency_ms"] == pytest.approx(together)
