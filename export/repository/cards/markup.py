"""Markdown of a model card: escaped text, lists and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["code", "escape", "list_from_lines", "table_from_rows"]

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "~": "&#126;"}


def escape(text: str) -> str:
    """Return a text as Markdown that shows it unchanged, on one line."""
    line = " ".join(text.split())
    line = re.sub(r"([\\`*_\[\]#])", r"\\\1", line)
    line = re.sub(r"[&<>|~]", lambda found: _ENTITIES[found[0]], line)
    # A list, a heading or a rule, at the start of a line.
    return re.sub(r"^([-+=]|\d+(?=[.)]))", lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", line)


def code(text: str) -> str:
    """Return a text as code."""
    return f"`{text.replace('`', ' ').replace('|', ' ')}`"


def list_from_lines(lines: Iterable[str]) -> str:
    """Return Markdown lines as a list."""
    return "\n".join(f"- {line}" for line in lines)


def table_from_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of Markdown cells as a table."""
    lines = (f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
    return "\n".join(lines)
