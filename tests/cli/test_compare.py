"""`plurum compare`: wrong use gives one line and exit code 2. tests/docs/test_comparing_page.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.run import Run
from tests.cli.command_line import CommandLine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits",), "no architecture to train on digits; name at least one with --arch"),
        (("digits", "--arch", "resnet_18"), "timm has no architecture 'resnet_18'"),
        (("nowhere", "--arch", "resnet18"), "nowhere"),
        (("digits", "--arch", "resnet18", "--checkpoint", "x=y"), "timm has no architecture 'x'"),
        (
            ("digits", "--arch", "resnet18", "--epochs", 0),
            "--epochs: expected a number greater than or equal to 1, got 0",
        ),
        (("RUN", "--epochs", 3, "--pretrained"), "nothing is trained again; leave out --epochs, --pretrained"),
        (("RUN", "--arch", "resnet18"), "no finished member of the architecture 'resnet18'"),
        (("RUN", "--checkpoint", "resnet10t=none.pt"), "none.pt is missing"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    run: Run, arguments: tuple[object, ...], message: str, tmp_path: Path, plurum: CommandLine
) -> None:
    words = [run.path if word == "RUN" else word for word in arguments]
    assert message in plurum.refused("compare", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_it(run: Run, tmp_path: Path, plurum: CommandLine) -> None:
    (tmp_path / "out").write_text("mine")
    printed = plurum.refused("compare", run.path, "--out", tmp_path / "out")
    assert "is a file; name a folder for the comparison" in printed
    assert (tmp_path / "out").read_text() == "mine"
