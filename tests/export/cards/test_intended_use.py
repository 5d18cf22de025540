"""Statements for the model card that can't be used are refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.export.repository.cards.facts import CardFacts
from plurum.run import Run
from tests.cli.command_line import CommandLine


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"colour": "red"}',
            "unknown key 'colour'; available: purpose, users, out_of_scope, limits, contact, licence.",
        ),
        ('{"purpose": " \\n "}', "purpose: expected a text, got an empty one."),
        ('{"limits": ["a", 1]}', "limits.1: Input should be a valid string."),
        ('{"limits": "a"}', "limits: Input should be a valid"),
        ("{", "file: Invalid JSON"),
        ("[]", "file: Input should be an object"),
    ],
)
def test_statements_that_can_not_be_used_are_refused_in_one_line(
    run: Run, tmp_path: Path, plurum: CommandLine, content: str, message: str
) -> None:
    path = tmp_path / "use.json"
    path.write_text(content)
    line = plurum.refused("export", run.path, "--out", tmp_path / "out", "--intended-use", path)
    assert f"--intended-use: {path}: {message}" in line
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_statements_is_named(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    line = plurum.refused("export", run.path, "--out", tmp_path / "out", "--intended-use", tmp_path / "nowhere.json")
    assert "nowhere.json can't be read: No such file or directory. Name a JSON file." in line
    assert CardFacts().use.purpose is None
