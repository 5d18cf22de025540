"""Progress on standard error: bars where a person looks, nothing where none does (the log tells it there)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["shown"]


@contextmanager
def shown(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Give a function that takes how many more are done and a note that stands behind the bar.

    Args:
        description: What is going on; stands before the bar.
        total: How many there are.
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
