"""Run the commands of docs/calibrating.md: a run of two classes, a site with other images, and a rollout there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from plurum.client import EnsembleClient
from plurum.training.calibration.site_images import decode_site_images, load_site_images
from plurum.training.inference.predictions import predict_pixels
from plurum.voting import decide
from tests.cli.command_line import CommandLine
from tests.docs.pages import Terminal, blocks, commands, keep_picture, without_numbers
from tests.sample_runs.decided_run import build_decided_run
from tests.sample_runs.site_images import write_site

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]
_IMAGES = 5


def test_the_page_runs(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_decided_run(Path("runs/clots"))
    data = load_site_images(str(write_site(Path("north"), ce=80, laa=20)), run).data
    printed = {}
    with ExitStack() as stack:
        terminal = Terminal(plurum, stack)
        for command in commands("calibrating.md"):
            printed[command] = terminal.run(command)
        with EnsembleClient(terminal.grpc) as client:
            answers = client.predict([Path(name) for name in data.table.sources[:_IMAGES]])
            served = [list(answer.probabilities.values()) for answer in answers]
    keep_picture(run.site_folder("north") / "calibration.png", "calibrating.md")
    (calibrated,) = (text for command, text in printed.items() if command.startswith("plurum calibrate"))
    (shown,) = blocks("calibrating.md", "text")
    assert without_numbers(calibrated) == without_numbers(shown)
    own, north = run.ensemble(), run.ensemble("north")
    members = predict_pixels(run, north.members, decode_site_images(data, north.image)[:_IMAGES], "images")
    np.testing.assert_allclose(served, decide(members, north.rule).probabilities, atol=1e-3)
    assert not np.allclose(served, decide(members, own.rule).probabilities, atol=1e-2)
