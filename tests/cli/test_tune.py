"""`plurum tune` with real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from plurum.benchmarks.claims.tune_efficiency import efficiency
from plurum.benchmarks.tools.load import Protocol, closed_loop, member_probabilities, open_loop, requests_of
from plurum.benchmarks.tools.requests import synthetic_images
from plurum.benchmarks.tune import check, tuning
from plurum.benchmarks.tune import space as tuning_space
from plurum.benchmarks.tune.check import TuneCheck
from plurum.benchmarks.tune.repository import read_artefacts
from plurum.benchmarks.tune.result import Gain, TuneResult
from plurum.benchmarks.tune.variant import AS_IS, Batching
from plurum.errors import ServerError
from plurum.run import Run
from plurum.serving import Server
from plurum.serving.triton.staging import read_config
from plurum.spec import read_ensemble
from tests.cli.command_line import CommandLine


@pytest.mark.triton
def test_a_repository_is_tuned_and_can_be_served(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine
) -> None:
    # As few servers as needed to run all stages.
    monkeypatch.setattr(tuning, "available_backends", lambda: ("onnxruntime",))
    monkeypatch.setattr(tuning_space, "shapes", lambda _: [(1, 1)])
    monkeypatch.setattr(tuning_space, "_BATCHINGS", (Batching(),))
    # Turns this short measure noise.
    monkeypatch.setattr(tuning, "is_preferable", lambda *_: True)
    out = tmp_path / "tuned"
    short = ("--seconds", "0.2", "--turns", "1", "--clients", "2")
    said = plurum.said("tune", fused, "--out", out, *short)
    found = TuneResult.model_validate_json((out / "tuning.json").read_bytes())
    assert [one.error for one in found.trials] == ["", ""]
    assert {one.variant.form for one in found.trials} == {"chain", "fused"}
    assert [(one.side, len(one.points)) for one in sorted(found.finals, key=lambda one: one.side)] == [
        ("after", 2),
        ("before", 2),
    ]
    assert found.chosen == found.best
    assert f"chosen: {found.best}: " in said
    assert "both measured in the same run" in said
    steps = {step.model_name for step in read_config(out / "ensemble").ensemble_scheduling.step}
    assert ("fused" in steps) == (found.best.form == "fused")
    assert {path.name for path in tmp_path.iterdir()} == {"tuned"}
    assert {path.name for path in out.iterdir()} == {path.name for path in fused.iterdir()} | {
        "tuning.json",
        "tuning.csv",
        "tuning.png",
    }


@pytest.mark.triton
def test_a_check_measures_alternatives_and_writes_nothing(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine
) -> None:
    monkeypatch.setattr(check, "available_backends", lambda: ("onnxruntime",))
    monkeypatch.setattr(tuning_space, "shapes", lambda _: [(1, 1)])
    monkeypatch.chdir(tmp_path)
    short = ("--seconds", "0.2", "--turns", "2", "--clients", "2", "--json")
    found = TuneCheck.model_validate_json(plurum.said("tune", fused, "--check", *short))
    (other,) = found.alternatives
    assert str(other.variant).startswith("fused, 1 x 1 ")
    assert other.gain.ratio > 0
    assert other.gain.low is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Gain(ratio=1.05, low=1.03, high=1.07), "worth it: fused, "),
        (Gain(ratio=1.05, low=0.98, high=1.12), "not worth it: fused, "),
        (Gain(ratio=1.01, low=1.005, high=1.015), "not worth it: fused, "),
        # A single turn has no interval.
        (Gain(ratio=1.5), "not worth it: fused, "),
    ],
)
def test_a_check_needs_a_significant_gain(
    gain: Gain, said: str, fused: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine
) -> None:
    monkeypatch.setattr(check, "available_backends", lambda: ("onnxruntime",))
    monkeypatch.setattr(check, "_gains", lambda *_: [gain])
    assert plurum.said("tune", fused, "--check").startswith(said)


@pytest.mark.triton
def test_ctrl_c_keeps_what_was_measured_and_leaves_no_server(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    words = [sys.executable, "-m", "plurum", "tune", str(repository), "--out", str(out), "--seconds", "0.2"]
    # Temporary files would show that one of its servers is still running.
    mine = tmp_path / "tmp"
    mine.mkdir()
    environment = os.environ | {"TMPDIR": str(mine)}
    journal = tmp_path / ".tuned.tuning" / "journal.json"
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as process:
        deadline = time.monotonic() + 100
        while not journal.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "plurum: interrupted; run the same command again to resume\n")
    assert json.loads(journal.read_text())["trials"]
    assert not out.exists()
    assert list(mine.glob("plurum_*")) == []


@pytest.mark.triton
@pytest.mark.parametrize("over", ["gRPC", "HTTP"])
def test_clients_are_counted_and_refusals_said(served: Server, repository: Path, over: Protocol) -> None:
    spec = read_ensemble(repository / "ensemble.json").image
    url = served.urls.grpc if over == "gRPC" else served.urls.http
    images = synthetic_images(spec)[:3]
    encoded, pixels = (requests_of(images, spec, model, over) for model in ("ensemble", "ensemble_pixels"))
    if over == "gRPC":
        said = member_probabilities(url, encoded)
        assert said.shape == (3, 2, 10)
        assert np.allclose(said, member_probabilities(url, pixels), atol=1e-6)
    busy = closed_loop(url, encoded, 3, 0.3)
    assert busy.clients == 3 <= busy.requests
    assert 0 < busy.p50_ms <= busy.p99_ms
    # At most three at a time.
    assert busy.images_per_s * busy.p50_ms / 1000 < 6
    strangers = open_loop(url, pixels, [0.0, 0.1, 0.2])
    assert (strangers.clients, strangers.requests) == (0, 3)
    with pytest.raises(ServerError, match=r"request failed: .*absent"):
        closed_loop(url, requests_of(images, spec, "absent", over), 2, 0.1)


@pytest.mark.triton
@pytest.mark.slow
def test_served_rates_are_compared_with_the_hardwares_limit(repository: Path) -> None:
    found = efficiency(read_artefacts(AS_IS, repository), 1, 0.1, 10, lambda _: None)
    for kind in ("ensemble_pixels", "ensemble", "ensemble_pixels by 4", "ensemble by 4"):
        one = found[kind]
        assert one["case"].startswith(f"{kind}, ")
        assert one["images_per_s"] == found["images_per_s"][one["case"]][0] > 0
        assert one["ratio"] == pytest.approx(one["images_per_s"] / one["ceiling"], abs=1e-3)
    assert {"triton", "client"} <= set(found["processor_ms"])
    assert found["half_load"]["even_p99_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("REPO", "--out", "precious"), "precious is not empty and not a model repository"),
        (("REPO", "--out", "REPO"), "is the repository itself, which is kept as it is; name another folder"),
        (("REPO", "--out", "out", "--images", "precious"), "precious"),
        (("REPO", "--out", "out", "--run", "absent"), "absent"),
        (("REPO",), "--out, --check: expected either --out TUNED, or --check without --out and --run"),
        (("REPO", "--check", "--out", "out"), "--out, --check: expected either"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...],
    reason: str,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plurum: CommandLine,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "mine.txt").write_text("mine")
    words = [str(repository) if word == "REPO" else word for word in arguments]
    assert reason in plurum.refused("tune", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_another_run_is_refused(repository: Path, fresh_run: Run, plurum: CommandLine) -> None:
    metadata = fresh_run.ensemble_file
    metadata.write_text(metadata.read_text().replace('"digits-test"', '"other"'))
    out = fresh_run.path.parent / "out"
    assert "was not exported from" in plurum.refused("tune", repository, "--out", out, "--run", fresh_run.path)
    assert not out.exists()
