"""Run the commands of docs/distilling.md with shorter trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from plurum.spec import read_ensemble
from tests.docs.pages import SMALL_DIGITS, Terminal, commands

SMALLER = SMALL_DIGITS | {"--epochs 8": "--epochs 2", "--epochs 16": "--epochs 2"}


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
def test_the_page_runs(terminal: Terminal, tmp_path: Path) -> None:
    printed = [terminal.run(command, SMALLER) for command in commands("distilling.md")]
    teacher, student = (Run(tmp_path / "runs" / name) for name in ("teacher", "student"))
    assert "trained on labels alone" in printed[2]
    assert "added to runs/teacher as student" in printed[-2]
    assert [member.name for member in student.ensemble().members] == ["test_byobnet"]
    assert read_ensemble(student.path / "model_repository" / "ensemble.json").outliers is not None
    assert [member.name for member in teacher.members()] == ["student", "test_efficientnet", "test_resnet"]
