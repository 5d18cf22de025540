"""Run the commands and the Python of docs/backbones.md and docs/searching.md with shorter trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from plurum.settings.search import AUGMENTATIONS
from tests.docs.pages import SMALL_DIGITS, Terminal, blocks, commands, run_python, text_of

SHORTER = {**SMALL_DIGITS, "search digits ": "search digits.npz ", "--epochs 6 --trials 12": "--epochs 1 --trials 2"}


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
def test_the_page_of_backbones_runs(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (code,) = blocks("backbones.md", "python")
    for number, command in enumerate(commands("backbones.md")):
        if not command.startswith("python"):
            terminal.run(command, SHORTER)
        if number == 0:
            run_python(code, tmp_path)
    frozen, last = (Run(tmp_path / "runs" / name).members() for name in ("frozen", "last"))
    assert [member.name for member in frozen] == ["foundation", "foundation-2", "foundation-3"]
    assert last[0].image.mean == frozen[0].image.mean == Run(tmp_path / "runs" / "foundation").data().image.mean
    assert len(list((tmp_path / "cache" / "plurum" / "features").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_page_of_searches_runs(terminal: Terminal, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (command,) = commands("searching.md")
    assert "next: plurum train digits.npz --arch test_" in terminal.run(command, SHORTER)
    assert (tmp_path / "studies" / "digits" / "search.html").is_file()


def test_the_page_of_searches_states_each_augmentation() -> None:
    text = text_of("searching.md")
    for name, values in AUGMENTATIONS.items():
        options = " ".join(
            f"--{field.replace('_', '-')}" + ("" if value is True else f" {value:g}") for field, value in values.items()
        )
        assert f"| `{name}` | `{options}` |" in text
