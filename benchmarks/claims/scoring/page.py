"""Tables of the page about scoring an archive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plurum.export.repository.cards.markup import table_from_rows

__all__ = ["score_table"]

# Figures of the table of jobs that grow, by their title.
_GROWTH = {
    "images": "rows",
    "parts": "parts",
    "command, s": "seconds",
    "processor time of the driver, s": "driver_s",
    "of Ray without workers, s": "ray_s",
    "largest memory of the driver, MiB": "driver_mib",
}


def score_table(part: str, figures: Mapping[str, Any]) -> str:
    """Return the figures of a part as a Markdown table: a row per job for growth, else a row per figure."""
    rows = [(name.replace("_", " "), _cell(value)) for name, value in figures.items() if name != "jobs"]
    table = table_from_rows((part, ""), rows)
    if "jobs" not in figures:
        return table
    jobs = [[_cell(one[name]) for name in _GROWTH.values()] for one in figures["jobs"]]
    return f"{table_from_rows(list(_GROWTH), jobs)}\n\n{table}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int | float) else str(value)
