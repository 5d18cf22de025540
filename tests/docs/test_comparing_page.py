"""Run the commands of docs/comparing.md, with smaller architectures and shorter turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.compare.comparison import Comparison
from plurum.benchmarks.compare.report import COMPARISON_FILES
from plurum.run import Run
from tests.docs.pages import DOCS, Terminal, commands, text_of

SMALLER = {
    "resnet10t": "test_resnet",
    "dla46_c": "test_vit",
    " --arch regnetx_002": "",
    "compare digits ": "compare digits.npz --epochs 1 ",
}


def test_the_page_names_every_file_and_shows_every_picture() -> None:
    text = text_of("comparing.md")
    for name in COMPARISON_FILES:
        assert f"`{name}`" in text
        if name.endswith(".png"):
            assert f"(images/comparing/{name})" in text
            assert (DOCS / "images" / "comparing" / name).is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small_digits")
def test_the_commands_run_and_the_second_time_only_measure(terminal: Terminal) -> None:
    first, second = (f"{command} --rounds 2 --seconds 0.05 --draws 100" for command in commands("comparing.md"))
    out = Path("runs/compared")
    printed = terminal.run(first, SMALLER)
    assert printed == (out / "comparison_report.txt").read_text() + f"report: {out}/comparison_report.html\n"
    assert {*COMPARISON_FILES, "run", "work"} == {file.name for file in out.iterdir()}
    kept = times_of(out / "work")
    assert len(kept) == 2 * 3
    report = json.loads(terminal.run(f"{first} --json", SMALLER))
    assert kept == times_of(out / "work")
    assert report == json.loads((out / "comparison_results.json").read_bytes())
    check_report(report, Run(out / "run"))
    terminal.run(second, SMALLER)
    check_joined(*(read_comparison(Path("runs", name)) for name in ("compared", "joined")))


def times_of(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def read_comparison(folder: Path) -> Comparison:
    return Comparison.model_validate_json((folder / "comparison_results.json").read_bytes())


def check_report(report: dict[str, Any], run: Run) -> None:
    first, second = report["compared"]
    assert first["costs"]["parameters"] == run.members()[0].parameters
    assert first["accuracy"]["pytorch"] == first["accuracy"]["onnx_fp32"] == first["metrics"]["accuracy"]
    assert first["costs"]["size_mb"]["onnx_int8"] < 0.5 * first["costs"]["size_mb"]["onnx_fp32"]
    assert first["training_s"] > 0
    (vote,) = report["votes"]
    together = sum(one["speed"]["onnx_fp32"]["latency_ms"]["median"] for one in (first, second))
    assert vote["latency_ms"] == pytest.approx(together)


def check_joined(first: Comparison, joined: Comparison) -> None:
    assert [one.origin for one in first.compared] == ["trained"] * 2
    # The same members and images give the same scores, wherever they were trained.
    member, checkpoint = joined.compared
    assert (member.origin, checkpoint.origin) == ("run", "checkpoint")
    assert [one.metrics for one in joined.compared] == [one.metrics for one in first.compared]
    assert member.training_s == first.compared[0].training_s
    assert checkpoint.training_s is None
    assert "checkpoint: trained elsewhere" in joined.notes[0]
