"""Progress of long work on standard error: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plurum.progress import ProgressRate

__all__ = ["show_progress"]

# Seconds between lines: a log of hours stays short, and shorter work prints none.
_LINE_S = 30.0


@contextmanager
def show_progress(description: str, total: int, what: str = "steps") -> Iterator[Callable[[int, str], None]]:
    """Show progress and yield a function that advances it by a count and sets the note behind it.

    Args:
        description: Name of the activity.
        total: Number of items.
        what: Name of the items, in the plural.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(description, total, what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total, note="")

        def advance(count: int, note: str) -> None:
            if note:
                bars.update(task, note=note)
            bars.advance(task, count)

        yield advance


def _lines(description: str, total: int, what: str) -> Callable[[int, str], None]:
    """Return a function that prints a line about the progress at most every 30 seconds."""
    start_s = time.monotonic()
    rate, last_s, last_note = ProgressRate(total, start_s, what=what), start_s, ""

    def advance(count: int, note: str) -> None:
        nonlocal last_s, last_note
        now_s = time.monotonic()
        last_note = note or last_note
        rate.note(rate.done + count, now_s)
        if now_s - last_s >= _LINE_S and rate.done < total:
            last_s = now_s
            sys.stderr.write(f"{description}: {rate.summary(now_s)}{last_note and f'; {last_note}'}\n")
            sys.stderr.flush()

    return advance
