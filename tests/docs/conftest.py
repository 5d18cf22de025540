"""A terminal for the commands of pages, and small data for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.docs.pages import Terminal
from tests.training.data_files import digit_arrays, save_npz


@pytest.fixture
def terminal(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Return a terminal in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as server:
        yield Terminal(plurum, server)


@pytest.fixture
def small_digits(tmp_path: Path) -> None:
    """Write the file that `SMALL_DIGITS` names: 320 digits of four classes instead of 1,797 of ten."""
    save_npz(tmp_path / "digits.npz", digit_arrays())
