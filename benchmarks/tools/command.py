"""How a benchmark runs as a program."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from plurum.errors import PlurumError

__all__ = ["run_as_program"]


def run_as_program(command: Callable[..., None]) -> None:
    """Run a command with this process's arguments; what Plurum raises on purpose becomes one line and its exit code."""
    try:
        typer.run(command)
    except PlurumError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
