"""Progress of long work: rate and remaining time, and the stage of a command.

On standard error, a stage is a spinner on a terminal, and elsewhere a line from time to time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["ProgressRate", "show_status"]

# Seconds between lines about stages: a log of hours stays short, and shorter commands print none.
_LINE_S = 30.0

# Time over which the rate is averaged, seconds: long enough for pauses, short enough to forget a server restart.
_MEMORY_S = 30.0


@dataclass
class ProgressRate:
    """Progress of a task.

    Attributes:
        total: Number of items.
        started_s: Start time, seconds on any clock.
        done: Number of completed items.
        what: Name of the items, in the plural.
    """

    total: int
    started_s: float
    done: int = 0
    what: str = "images"
    _mark_s: float = 0.0
    _mark: int = 0
    _next_s: float = 0.0
    _next: int = 0

    def __post_init__(self) -> None:
        self._mark_s = self._next_s = self.started_s

    def note(self, done: int, now_s: float) -> None:
        """Record the number of completed items."""
        self.done = done
        if now_s - self._next_s >= _MEMORY_S:
            # The rate covers the last one to two periods.
            self._mark_s, self._mark = self._next_s, self._next
            self._next_s, self._next = now_s, done

    def rate(self, now_s: float) -> float:
        """Return the recent rate, items per second; 0 before the first item."""
        passed_s = now_s - self._mark_s
        return (self.done - self._mark) / passed_s if passed_s > 0 else 0.0

    def summary(self, now_s: float) -> str:
        """Return progress, rate and remaining time as one line."""
        rate = self.rate(now_s)
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{self.done:,} of {self.total:,} {self.what}, {rate:,.{0 if rate >= 10 else 1}f}/s{left}"


@contextmanager
def show_status(first: str) -> Iterator[Callable[[str], None]]:
    """Show the stage of a command during a `with` block; the value changes it.

    Without a terminal, a thread writes a line when 30 seconds have passed since the last one, unless the stage is still
    the same.

    Args:
        first: First stage.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(first) as status:
            yield status.update
        return
    lines = _StatusLines(first)
    lines.start()
    try:
        yield lines.update
    finally:
        lines.end()


class _StatusLines(threading.Thread):
    """Writes the stage from time to time.

    Args:
        first: First stage.
    """

    def __init__(self, first: str) -> None:
        super().__init__(name="status", daemon=True)
        self._stage, self._written = first, ""
        self._start_s = time.monotonic()
        self._ended = threading.Event()

    def update(self, stage: str) -> None:
        """Change the stage."""
        self._stage = stage

    def end(self) -> None:
        """Write no further line."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Write a line whenever one is due, until the end."""
        while not self._ended.wait(_LINE_S):
            stage = self._stage
            if stage != self._written:
                self._written = stage
                passed_s = round(time.monotonic() - self._start_s)
                sys.stderr.write(f"{stage} (after {passed_s // 60} min {passed_s % 60:02} s)\n")
                sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
