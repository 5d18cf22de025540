"""Run the commands of docs/deciding.md on a run of two classes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from plurum.run import Run
from tests.cli.command_line import CommandLine
from tests.docs.pages import blocks, commands, keep_picture
from tests.sample_runs.decided_run import build_decided_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_page_runs(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_decided_run(Path("runs/clots"))
    plain, with_review = blocks("deciding.md", "csv")
    Path("costs.csv").write_text(plain)
    Path("review_costs.csv").write_text(with_review)
    found = {}
    for command in commands("deciding.md"):
        printed = plurum.said(*shlex.split(command)[1:], "--draws", 100)
        found[command.removeprefix("plurum fit runs/clots").strip()] = Run(run.path).ensemble().operating_point
        if "--confidence" in command:
            keep_picture(run.report_folder / "fit_point.png", "deciding.md")
        assert ("operating point: CE from a probability of" in printed) == ("--positive" in command)
    first, sensitivity, costs, certain, review = found.values()
    assert first is None
    assert sensitivity is not None
    assert costs is not None
    assert certain is not None
    assert review is not None
    # The page's 1 / (1 + 9).
    assert costs.threshold == pytest.approx(0.1)
    assert sensitivity.threshold != certain.threshold
    assert certain.confidence == 0.9
    assert review.review_cost == 0.5
