"""Progress bars on standard error if it is a terminal; elsewhere the log reports progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["show_progress"]


@contextmanager
def show_progress(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar and yield a function that advances it by a count and sets the note behind it.

    Args:
        description: Name of the activity, shown before the bar.
        total: Number of items.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(description, total=total, note="")

        def advance(count: int, note: str) -> None:
            if note:
                bars.update(task, note=note)
            bars.advance(task, count)

        yield advance
