"""A terminal for the commands of pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.docs.pages import Terminal


@pytest.fixture
def terminal(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Return a terminal in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as server:
        yield Terminal(plurum, server)
