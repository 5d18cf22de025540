"""Run the commands of docs/members.md with small models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plurum.run import Run
from plurum.spec import read_ensemble
from tests.docs.pages import Terminal, blocks, commands, run_python
from tests.training.adding.onnx_samples import write_graph

SMALLER = {"resnet10t": "test_resnet", "--epochs 4": "--epochs 1"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run_in_their_order(terminal: Terminal, tmp_path: Path) -> None:
    (code,) = blocks("members.md", "python")
    run_python(code, tmp_path)
    write_graph(tmp_path / "colleague.onnx", softmax=True)
    for command in commands("members.md"):
        terminal.run(command, SMALLER)
    run = Run(tmp_path / "runs/mixed")
    formats = {member.name: (member.format, member.image.height) for member in run.members()}
    assert formats == {"test_resnet": ("timm", 48), "theirs": ("onnx", 64), "colleague": ("onnx", 48)}
    assert read_ensemble(run.path / "model_repository" / "ensemble.json").members == run.ensemble().members
    parities = json.loads((run.path / "model_repository" / "parity.json").read_text())["artefacts"]
    assert np.max([one["max_difference"] for one in parities]) < 1e-3
