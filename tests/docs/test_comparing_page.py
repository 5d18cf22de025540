"""Run the commands of docs/comparing.md, with smaller architectures and shorter turns."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plurum.benchmarks.compare.comparison import Comparison
from plurum.benchmarks.compare.report import COMPARISON_FILES
from plurum.cli.main import run as command_line

PAGE = Path(__file__).resolve().parents[2] / "docs" / "comparing.md"
SMALLER = {"resnet10t": "test_resnet", "dla46_c": "test_vit", " --arch regnetx_002": ""}


def test_the_page_names_every_file_and_shows_every_picture() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in COMPARISON_FILES:
        assert f"`{name}`" in text
        if name.endswith(".png"):
            assert f"(images/comparing/{name})" in text
            assert (PAGE.parent / "images" / "comparing" / name).is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for command in "".join(blocks).splitlines():
        for large, small in SMALLER.items():
            command = command.replace(large, small)  # noqa: PLW2901 - step by step
        shorter = ["--seconds", "0.05", "--draws", "100", *(["--epochs", "1"] if " digits " in command else [])]
        monkeypatch.setattr("sys.argv", [*shlex.split(command), *shorter])
        with pytest.raises(SystemExit) as caught:
            command_line()
        assert not caught.value.code, command
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
