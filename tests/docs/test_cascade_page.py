"""Run the commands of docs/cascade.md, and compare what the page prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from tests.docs.pages import Terminal, blocks, commands, without_numbers


@pytest.mark.slow
def test_the_page_runs_and_prints_lines_as_on_the_page(terminal: Terminal, tmp_path: Path) -> None:
    printed = [terminal.run(command) for command in commands("cascade.md")]
    shown = blocks("cascade.md", "text")[0].strip().splitlines()
    for line in shown:
        # Which member settles how many images depends on the training.
        assert without_numbers(line.partition("settle")[2] or line) in without_numbers(printed[-1])
    cascade = Run(tmp_path / "runs" / "cascade").ensemble().cascade
    assert cascade is not None
    assert cascade.promise is not None
    assert cascade.promise.status == "provisional"
