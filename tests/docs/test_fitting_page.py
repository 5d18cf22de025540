"""Run the commands and the Python of docs/fitting.md with shorter trainings."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from plurum.cli.main import run as command_line
from plurum.run import Run
from plurum.voting import Verdict

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "fitting.md"

pytestmark = pytest.mark.slow


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in "".join(blocks("sh")).splitlines():
        # The reader has these data, not the test.
        if "runs/clots" in command:
            continue
        words = shlex.split(command.replace("--epochs 5", "--epochs 1"))
        if words[0] == "cp":
            subprocess.run(words, check=True)
            continue
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as caught:
            command_line()
        assert not caught.value.code, command
    run = Run(tmp_path / "runs" / "votes")
    weights = load_file(run.member_folder("test_resnet") / "checkpoint.safetensors")
    save_file(weights, tmp_path / "a.safetensors")
    fitted, elsewhere = blocks("python")
    names: dict[str, object] = {"pixels": np.array(run.pixels()[:3])}
    exec(fitted, names)  # noqa: S102 - our own page
    verdict = names["verdict"]
    assert isinstance(verdict, Verdict)
    assert verdict.probabilities.shape == (3, 10)
    others: dict[str, object] = {"classes": run.data().classes, "image": run.data().image}
    # The second half needs the reader's own models.
    exec(elsewhere.replace("b.pt", "a.safetensors").split("ensemble = ensemble_from_models")[0], others)  # noqa: S102
    assert callable(others["ensemble"])
