"""Run the commands of docs/folds.md with short trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from tests.docs.pages import SMALL_DIGITS, Terminal, commands

SHORTER = {**SMALL_DIGITS, "--epochs 12": "--epochs 1", "folds.coverage": "folds.coverage --studies 20 --images 60"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("small_digits")
def test_the_page_runs(terminal: Terminal, tmp_path: Path) -> None:
    for command in commands("folds.md"):
        # The comparison takes half an hour; its own test runs it on few images.
        if "folds-study" not in command:
            terminal.run(command, SHORTER)
    run = Run(tmp_path / "runs" / "folds")
    assert len(run.members()) == 6
    assert len(set(run.ensemble().voting.weights)) <= 2
