"""Standard input, output and error, which may be closed or of a limited encoding; tables on standard output."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.box import Box
    from rich.table import Table

__all__ = ["close_output", "new_table", "prepare_streams", "show_table", "write_json"]

_HANDLER = "plurum"


def prepare_streams() -> None:
    """Open closed standard streams on /dev/null, and make standard output accept every text.

    Undecodable bytes of a path are written unchanged, and characters outside the locale's encoding as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next opened file gets this descriptor, and terminal output is written into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error(_HANDLER, _encode)
    # Tests and notebooks replace it.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors=_HANDLER)


def close_output() -> None:
    """Discard unwritten standard output, which Python would try to write again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def new_table(*columns: str, left: int = 1, title: str = "", box: Box | None = None) -> Table:
    """Return an empty table whose first `left` columns hold text, and the others numbers; without `box`, no lines."""
    from rich.table import Table

    table = Table(*columns[:left], title=title or None, title_justify="left", box=box)
    for column in columns[left:]:
        table.add_column(column, justify="right")
    return table


def write_json(report: BaseModel) -> None:
    """Print a report as one line of JSON."""
    sys.stdout.write(report.model_dump_json() + "\n")


def show_table(table: Table, *lines: str) -> None:
    """Print a table, then lines; in a pipe, which has no width, each row of the table stays on one line."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table, soft_wrap=True)
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_escape, text)), error.end


def _escape(letter: str) -> bytes:
    if "\udc80" <= letter <= "\udcff":
        return letter.encode("utf-8", "surrogateescape")
    return letter.encode("ascii", "backslashreplace")
