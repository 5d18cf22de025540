"""Run the commands of docs/model-card.md on a run of two classes and two sites, and compare its excerpt."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.docs.pages import blocks, commands
from tests.sample_runs.decided_run import add_column, build_decided_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def shape(text: str) -> str:
    """Return the text without its numbers and hashes, which differ between processors."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"[0-9a-f]{12,}", "#", text))


def test_the_page_runs_and_shows_its_card(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_decided_run(Path("runs/clots"))
    add_column(run, "site", ["north", "south"])
    (statements,) = blocks("model-card.md", "json")
    *first, again = commands("model-card.md")
    for command in first:
        plurum.said(*shlex.split(command)[1:])
    card = run.path / "model_repository" / "model_card.md"
    assert "Not stated. Write" in card.read_text()
    (run.path / "intended_use.json").write_text(statements)
    assert "nothing to do" in plurum.said(*shlex.split(again)[1:])
    (excerpt,) = blocks("model-card.md", "markdown")
    parts = [part for part in excerpt.split("…\n") if part.strip()]
    assert len(parts) > 2
    for part in parts:
        assert shape(part.strip()) in shape(card.read_text())
