"""Run the commands of docs/comparing.md, with smaller architectures and shorter turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.benchmarks.compare.comparison import Comparison
from plurum.benchmarks.compare.report import COMPARISON_FILES
from tests.docs.pages import DOCS, Terminal, commands, text_of

SMALLER = {
    "resnet10t": "test_resnet",
    "dla46_c": "test_vit",
    " --arch regnetx_002": "",
    "compare digits": "compare digits --epochs 1",
}


def test_the_page_names_every_file_and_shows_every_picture() -> None:
    text = text_of("comparing.md")
    for name in COMPARISON_FILES:
        assert f"`{name}`" in text
        if name.endswith(".png"):
            assert f"(images/comparing/{name})" in text
            assert (DOCS / "images" / "comparing" / name).is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run(terminal: Terminal, tmp_path: Path) -> None:
    for command in commands("comparing.md"):
        terminal.run(f"{command} --seconds 0.05 --draws 100", SMALLER)
    first, joined = (
        Comparison.model_validate_json((tmp_path / "runs" / name / "comparison_results.json").read_bytes())
        for name in ("compared", "joined")
    )
    assert [one.origin for one in first.compared] == ["trained"] * 2
    # The same members and images give the same scores, wherever they were trained.
    member, checkpoint = joined.compared
    assert (member.origin, checkpoint.origin) == ("run", "checkpoint")
    assert [one.metrics for one in joined.compared] == [one.metrics for one in first.compared]
    assert member.training_s == first.compared[0].training_s
    assert checkpoint.training_s is None
    assert "checkpoint: trained elsewhere" in joined.notes[0]
