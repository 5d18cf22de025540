"""Progress of a command on standard error: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_line", "show_progress"]

Item = TypeVar("Item")
# Seconds between updates of the bar, and between lines without a terminal.
_BAR_S, _LINE_S = 0.5, 10.0


def show_progress(
    items: Iterable[Item], total: int, done: Callable[[], int], console: Console, title: str
) -> Iterator[Item]:
    """Yield `items` while showing a progress bar or, without a terminal, progress lines.

    Args:
        items: Items as they arrive.
        total: Number of images that they stand for.
        done: Returns the number of images that are done.
        console: Console for standard error.
        title: Name of the activity.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from plurum.progress import ProgressRate

    start_s = time.monotonic()
    pace = ProgressRate(total, start_s)
    # By default Rich would redirect standard output to standard error.
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    every_s = _BAR_S if console.is_terminal else _LINE_S
    next_s = start_s if console.is_terminal else start_s + every_s
    with bar:
        task = bar.add_task("", total=total)
        for item in items:
            yield item
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + every_s
                pace.note(done(), now_s)
                if console.is_terminal:
                    bar.update(task, completed=pace.done, description=pace.summary(now_s), refresh=True)
                else:
                    show_line(console, pace.summary(now_s))


def show_line(console: Console, text: str) -> None:
    """Write a line to standard error, above the progress bar if there is one."""
    printable = text.encode("utf-8", "replace").decode("utf-8")
    console.print(printable, markup=False, highlight=False, soft_wrap=True)
