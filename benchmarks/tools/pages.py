"""Pages of the docs that hold a benchmark's results, each between its marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from plurum.errors import SettingsError

__all__ = ["Page", "page_with_tables"]

Page = Annotated[Path | None, typer.Option(help="Page to put the results into, between its marks.")]


def page_with_tables(page: Path, tables: Mapping[str, str]) -> str:
    """Return the text of a page with tables between its marks, `<!-- NAME -->` and `<!-- /NAME -->`.

    Args:
        page: Markdown file.
        tables: Tables by the name in their marks.

    Raises:
        SettingsError: the page does not exist, or has no marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    for name, table in tables.items():
        marks = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        if not marks.search(text):
            raise SettingsError(
                f"--page: expected a page with the marks <!-- {name} --> and <!-- /{name} -->, got {page}."
            )
        # A backslash in a replacement would be a group's.
        text = marks.sub(f"{table}\n".replace("\\", r"\\"), text)
    return text
