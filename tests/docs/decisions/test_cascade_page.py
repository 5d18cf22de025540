"""Run the commands of docs/cascade.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from tests.docs.pages import Terminal, commands


@pytest.mark.slow
def test_the_page_runs(terminal: Terminal, tmp_path: Path) -> None:
    printed = [terminal.run(command) for command in commands("cascade.md")]
    cascade = Run(tmp_path / "runs" / "cascade").ensemble().cascade
    # A training on another processor may leave nothing to gain.
    assert ("cascade: none, because " in printed[-1]) == (cascade is None)
    assert ("are hurt, with 95% confidence (provisional): " in printed[-1]) == (cascade is not None)
