"""Run the commands and the Python of docs/fitting.md with shorter trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from plurum.run import Run
from plurum.voting import Verdict
from tests.docs.pages import SMALL_DIGITS, Terminal, blocks, commands

SMALLER = {"--epochs 5": "--epochs 1", "regnetx_002": "test_nfnet"}


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
def test_the_page_runs(terminal: Terminal, tmp_path: Path) -> None:
    for command in commands("fitting.md"):
        # The reader has these data, not the test.
        if "runs/clots" not in command:
            # A promise needs more patients.
            terminal.run(command, SMALLER if "--certification" in command else SMALLER | SMALL_DIGITS)
    run = Run(tmp_path / "runs" / "votes")
    weights = load_file(run.member_folder("test_resnet") / "checkpoint.safetensors")
    save_file(weights, tmp_path / "a.safetensors")
    fitted, elsewhere = blocks("fitting.md", "python")
    names: dict[str, object] = {"pixels": np.array(run.pixels()[:3])}
    exec(fitted, names)  # noqa: S102 - our own page
    verdict = names["verdict"]
    assert isinstance(verdict, Verdict)
    assert verdict.probabilities.shape == (3, 4)
    others: dict[str, object] = {"classes": run.data().classes, "image": run.data().image}
    # The second half needs the reader's own models.
    exec(elsewhere.replace("b.pt", "a.safetensors").split("ensemble = ensemble_from_models")[0], others)  # noqa: S102
    assert callable(others["ensemble"])
