"""Tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.box import Box
    from rich.table import Table

__all__ = ["new_table", "show_table"]


def new_table(*columns: str, left: int = 1, title: str = "", box: Box | None = None) -> Table:
    """Return an empty table whose first `left` columns hold text, and the others numbers; without `box`, no lines."""
    from rich.table import Table

    table = Table(*columns[:left], title=title or None, title_justify="left", box=box)
    for column in columns[left:]:
        table.add_column(column, justify="right")
    return table


def show_table(table: Table) -> None:
    """Print a table; in a pipe, which has no width, each row stays on one line."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table, soft_wrap=True)
