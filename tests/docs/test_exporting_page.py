"""Run the commands of docs/exporting.md with members that train quickly."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plurum.cli.main import run as command_line
from plurum.export.settings import BUDGETS, MEMBER_SLACK

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
SMALL = {"resnet10t": "test_resnet", "regnetx_002": "test_byobnet", "--epochs 4": "--epochs 2"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 4
    for line in lines:
        command = line
        for large, small in SMALL.items():
            command = command.replace(large, small)
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_:
            command_line()
        assert exit_.value.code == 0, command
    assert ", 0 errors" in capsys.readouterr().out
    assert (tmp_path / "runs/exported/model_repository/ensemble_fused/config.pbtxt").is_file()
    assert (tmp_path / "runs/exported/auto/export.json").is_file()


def test_the_budgets_are_those_of_the_code() -> None:
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in PAGE.splitlines()) if len(row) == 4}
    for title, field, scale in (
        ("largest difference of a probability", "max_difference", 1.0),
        ("other labels", "flips", 100.0),
        ("loss of accuracy, points", "accuracy_loss", 100.0),
        ("increase of NLL, nats", "nll_increase", 1.0),
        ("increase of ECE", "ece_increase", 1.0),
        ("other reviews", "review_flips", 100.0),
    ):
        stated = [float(cell.split()[0]) for cell in rows[title]]
        coarse = getattr(BUDGETS["int8"], field)
        assert coarse == getattr(BUDGETS["bf16"], field)
        limits = [getattr(BUDGETS["fp32"], field), getattr(BUDGETS["fp16"], field), coarse]
        assert stated == pytest.approx([limit * scale for limit in limits]), title
    assert MEMBER_SLACK == 5
    assert "five times as many labels" in PAGE
