"""What MkDocs does beyond its plugins: the help of every command, as a terminal shows it, and links between pages."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import typer.main

# Files at the top of the repository that have a page on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}
MARK = "<!-- commands -->"
WIDTH = 100


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by one section for each command, and links to top-level files by links to their pages.

    MkDocs calls this for every page (https://www.mkdocs.org/user-guide/configuration/#hooks).
    """
    for file, page in PAGES.items():
        markdown = markdown.replace(f"(../{file}", f"({page}")
    return markdown.replace(MARK, _sections()) if MARK in markdown else markdown


def _sections() -> str:
    from plurum.cli.main import app

    commands = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    return "\n\n".join(f"## plurum {name}\n\n```text\n{_help(name)}\n```" for name in commands)


def _help(command: str) -> str:
    environment = os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(
        [sys.executable, "-m", "plurum", command, "--help"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
