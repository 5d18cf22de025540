"""A run is filled, resumed, extended, refused or started over; nothing half-written is left."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plurum.errors import DataError, OutputError, SettingsError
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.training import TrainSettings, train_run
from tests.training.conftest import ARCHS, SETTINGS, write_classes


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Run:
    """A finished run of this test's own."""
    shutil.copytree(trained.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def changed(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({**SETTINGS.model_dump(), **changes})


def weights_of(run: Run) -> dict[str, str]:
    return {member.name: member.sha256 for member in run.members()}


def test_a_member_is_complete(trained: Run) -> None:
    members = trained.members()
    assert [member.name for member in members] == list(ARCHS)
    for seed, member in enumerate(members):
        folder = trained.member_folder(member.name)
        assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors", "member.json", "history.csv"}
        assert member.sha256 == sha256_of(folder / "checkpoint.safetensors")
        assert member.seed == seed
        assert member.classes == trained.data().classes
        assert member.image == trained.data().image
        with (folder / "history.csv").open() as file:
            history = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
        best = min(history, key=lambda row: float(row["validation_nll"]))
        assert int(best["epoch"]) == member.best_epoch
        assert float(best["validation_nll"]) == member.validation.nll
        model = model_from_checkpoint(member, trained.checkpoint(member))
        assert sum(parameter.numel() for parameter in model.parameters()) == member.parameters


def test_finished_members_are_reused_and_others_added(copy: Run, archive: Path) -> None:
    before = weights_of(copy)
    again = train_run(str(archive), SETTINGS, copy.path)
    assert again.reused == ARCHS
    more = train_run(str(archive), changed(archs=(*ARCHS, "test_byobnet")), copy.path)
    assert more.reused == ARCHS
    assert [member.name for member in more.members] == [*ARCHS, "test_byobnet-2"]
    after = weights_of(copy)
    assert {name: after[name] for name in ARCHS} == before
    assert after["test_byobnet-2"] != after["test_byobnet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, "--epochs 4 and not 5;"),
        ({"seed": 1, "learning_rate": 0.1}, "--learning-rate 0.005 and not 0.1, --seed 0 and not 1;"),
        ({"archs": ARCHS[::-1]}, r"--archs \('test_byobnet', 'test_resnet'\) and not"),
        ({"archs": ARCHS[:1]}, "--archs"),
    ],
)
def test_other_settings_are_refused_by_what_differs(
    copy: Run, archive: Path, changes: dict[str, object], message: str
) -> None:
    before = weights_of(copy)
    with pytest.raises(OutputError, match=message):
        train_run(str(archive), changed(**changes), copy.path)
    assert weights_of(copy) == before
    assert train_run(str(archive), SETTINGS, copy.path).reused == ARCHS


def test_fresh_starts_over_and_leaves_nothing_stale(copy: Run, archive: Path) -> None:
    copy.ensemble_file.write_text("{}")
    training = train_run(str(archive), changed(archs=("test_byobnet",), epochs=1), copy.path, fresh=True)
    assert training.reused == ()
    assert [member.name for member in copy.members()] == ["test_byobnet"]
    assert copy.members()[0].epochs == 1
    assert not copy.ensemble_file.exists()


def test_fresh_keeps_the_old_run_where_the_new_one_is_refused(copy: Run, tmp_path: Path) -> None:
    before = weights_of(copy)
    with pytest.raises(DataError, match="there is no"):
        train_run(str(tmp_path / "nothing"), changed(epochs=1), copy.path, fresh=True)
    assert weights_of(copy) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(OutputError, match="holds something else than a run"):
            train_run(str(archive), SETTINGS, tmp_path, fresh=fresh)
    (tmp_path / "run.json").write_text('{"of": "another program"}')
    (tmp_path / "data").mkdir()
    with pytest.raises(OutputError, match="was not written by plurum train"):
        train_run(str(archive), SETTINGS, tmp_path, fresh=True)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "run.json", "data"}


def test_nothing_is_left_where_data_or_settings_are_refused(tmp_path: Path, archive: Path) -> None:
    folder = write_classes(tmp_path / "images", {"CE": 4, "LAA": 4})
    (folder / "LAA" / "2.png").write_bytes(b"broken")
    out = tmp_path / "runs" / "one"
    with pytest.raises(DataError, match=r"1 of 8 images can't be read.*LAA/2.png"):
        train_run(str(folder), changed(image_size=32), out)
    with pytest.raises(SettingsError, match="vit_tiny_patch16_224 can't take images of 32 x 32"):
        train_run(str(archive), changed(archs=("test_byobnet", "vit_tiny_patch16_224")), out)
    assert not (tmp_path / "runs").exists()
    # What was there before stays.
    out.mkdir(parents=True)
    with pytest.raises(DataError):
        train_run(str(folder), changed(image_size=32), out)
    assert list(out.iterdir()) == []


def test_a_member_that_diverges_is_named(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(SettingsError, match="test_byobnet: the training diverged"):
        train_run(str(archive), changed(learning_rate=10, weight_decay=10, warmup_share=0, epochs=40), tmp_path / "run")
    assert not list((tmp_path / "run" / "members").glob("*"))


@pytest.mark.slow
def test_an_interrupted_training_leaves_no_member_and_goes_on(tmp_path: Path, archive: Path) -> None:
    out, settings = tmp_path / "run", changed(epochs=15)
    command = [sys.executable, "-m", "plurum", "train", str(archive), "--out", str(out)]
    for arch in ARCHS:
        command += ["--arch", arch]
    command += ["--epochs", "15", "--batch-size", "16", "--learning-rate", "0.005", "--precision", "fp32"]
    # As many threads as here: sums depend on how they are divided.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (out / "members" / ARCHS[0] / "member.json").is_file() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [path.name for path in (out / "members").iterdir()] == [ARCHS[0]]
    resumed = train_run(str(archive), settings, out)
    assert resumed.reused == ARCHS[:1]
    # As if it had never been interrupted.
    train_run(str(archive), settings, tmp_path / "whole")
    assert weights_of(Run(tmp_path / "whole")) == weights_of(Run(out))
