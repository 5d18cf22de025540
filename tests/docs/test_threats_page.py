"""Check that docs/threats.md names a test for each claim, and that these tests exist."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT, text_of

TESTS = ROOT / "tests"


def rows() -> list[list[str]]:
    """Return the cells of each row below "Defended"."""
    text = text_of("threats.md").partition("## Defended")[2].partition("## Not defended")[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| Threat"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_each_row_names_tests_that_exist() -> None:
    assert len(rows()) > 25
    for threat, _, shown in rows():
        named = re.findall(r"`([\w/]+)::(\w+)`", shown)
        assert named, threat
        for file, name in named:
            tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
            functions = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert f"test_{name}" in functions, f"{threat}: {file}::{name}"
