"""Run the commands of docs/training.md and docs/evaluating.md one after another in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, SMALL_DIGITS, Terminal, blocks, commands, run_python, text_of
from tests.training.data_files import digit_arrays, write_mnist

# Small inputs and short runs: the figures on the pages took minutes.
SMALLER = {
    **SMALL_DIGITS,
    " --arch test_efficientnet": "",
    # A class of these few.
    "--positive nine": "--positive 3",
    "--epochs 12": "--epochs 3",
    "claims.training": (
        "claims.training --arch test_byobnet --size 32 --batch-size 8 --rounds 1 --steps 1 --epochs 1"
        " --accuracy-size 32"
    ),
    # Debian's package has 70,000 images and takes an hour: some digits in the same format replace them.
    "/usr/share/datasets/fashion-mnist": "fashion-mnist",
    "--epochs 8 --batch-size 128": "--epochs 1",
    "regnetx_002": "test_resnet",
    "ese_vovnet19b_slim_dw": "test_byobnet",
    "dla46_c": "test_nfnet",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("small_digits")]


def test_the_commands_and_the_python_of_training_run(terminal: Terminal, tmp_path: Path) -> None:
    write_mnist(tmp_path / "fashion-mnist", digit_arrays())
    for command in commands("training.md"):
        terminal.run(command, SMALLER)
    (example,) = blocks("training.md", "python")
    assert re.fullmatch(r"\d+\.\d+ 2\n", run_python(example, tmp_path))


@pytest.mark.triton
def test_the_commands_of_evaluating_run(terminal: Terminal, tmp_path: Path) -> None:
    # The page has the command that copies its pictures.
    (tmp_path / "docs" / "images" / "evaluating").mkdir(parents=True)
    for command in commands("evaluating.md"):
        terminal.run(command, SMALLER)


def test_the_page_has_a_row_for_each_extra() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^([a-z0-9-]+) = \[", project.partition("\n[")[0], re.MULTILINE)
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text_of("installing.md"), re.MULTILINE) == extras
