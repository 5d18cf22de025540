"""Run the commands of docs/outliers.md with a shorter training, and compare what the page prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plurum.run import Run
from tests.docs.pages import Terminal, blocks, commands


@pytest.mark.slow
def test_the_page_runs_and_prints_lines_as_on_the_page(terminal: Terminal, tmp_path: Path) -> None:
    printed = [terminal.run(command, {"--epochs 5": "--epochs 1"}) for command in commands("outliers.md")]
    shown = blocks("outliers.md", "text")[0].strip()
    # The share depends on the training, the patients do not.
    assert re.sub(r"\d+\.\d%", "x", shown) in re.sub(r"\d+\.\d%", "x", printed[-1])
    rule = Run(tmp_path / "runs" / "outliers").ensemble().outliers
    assert rule is not None
    assert (rule.alpha, rule.split) == (0.05, "calibration")
