"""Run the commands of docs/exporting.md with members that train quickly."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.export.settings import BUDGETS, MEMBER_SLACK
from tests.docs.pages import SMALL_DIGITS, Terminal, commands, text_of

PAGE = text_of("exporting.md")
SMALLER = {**SMALL_DIGITS, "resnet10t": "test_resnet", "regnetx_002": "test_byobnet", "--epochs 4": "--epochs 2"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small_digits")
def test_the_commands_run_in_their_order(terminal: Terminal, tmp_path: Path) -> None:
    said = [terminal.run(command, SMALLER) for command in commands("exporting.md")]
    assert len(said) > 4
    assert ", 0 errors" in "".join(said)
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
