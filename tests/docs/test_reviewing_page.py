"""Run the commands of docs/reviewing.md that draw audits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from plurum.run import Run
from tests.cli.command_line import CommandLine
from tests.docs.pages import commands
from tests.sample_runs.decided_run import build_decided_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_audits_are_exported_and_their_key_lasts(
    plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_decided_run(Path("runs/demo"))
    fit, export = (one for one in commands("reviewing.md") if one.startswith(("plurum fit", "plurum export")))
    plurum.said(*shlex.split(fit)[1:], "--draws", 100)
    assert Run(run.path).ensemble().audit_rate == float(fit.rpartition(" ")[2])
    keys = []
    for batch in (4, 8):
        code, _, err = plurum.ended(*shlex.split(export)[1:], "--precision", "fp32", "--max-batch-size", batch)
        assert code == 0, err
        keys.append(json.loads(Path("runs/demo/model_repository/voter/1/audit.json").read_text())["key"])
    assert keys[0] == keys[1]
    assert keys[0] not in Path("runs/demo/model_repository/ensemble.json").read_text()


def test_a_rate_out_of_range_is_refused(plurum: CommandLine, tmp_path: Path) -> None:
    run = build_decided_run(tmp_path / "run")
    for rate in ("0", "1.5", "nan"):
        assert "--audit-rate" in plurum.refused("fit", run.path, "--audit-rate", rate)
    assert not run.ensemble_file.exists()
