"""Training a run: new, resumed, extended, refused, started over; no partial files are left."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plurum.errors import DataError, OutputError, SettingsError
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.training import TrainOptions, TrainSettings, train_run
from tests.sample_runs.trained_run import ARCHS, SETTINGS
from tests.training.data_files import write_classes


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Run:
    """Return a copy of the finished run for one test."""
    shutil.copytree(trained.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def changed(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({**SETTINGS.model_dump(), **changes})


def weights_of(run: Run) -> dict[str, str]:
    return {member.name: member.sha256 for member in run.members()}


def test_a_member_has_checkpoint_metadata_and_history(trained: Run) -> None:
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
        assert member.validation is not None
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
        ({"epochs": 5}, "--epochs: expected 4, got 5"),
        ({"seed": 1, "learning_rate": 0.1}, "--seed: expected 0, got 1; --learning-rate: expected 0.005, got 0.1"),
        ({"archs": ARCHS[::-1]}, r"--arch: expected \('test_byobnet', 'test_resnet'\), got"),
        ({"archs": ARCHS[:1]}, "--arch: expected"),
    ],
)
def test_settings_that_differ_from_the_run_are_refused_and_named(
    copy: Run, archive: Path, changes: dict[str, object], message: str
) -> None:
    before = weights_of(copy)
    with pytest.raises(OutputError, match=message):
        train_run(str(archive), changed(**changes), copy.path)
    assert weights_of(copy) == before
    assert train_run(str(archive), SETTINGS, copy.path).reused == ARCHS


def test_fresh_starts_over_and_leaves_nothing_stale(copy: Run, archive: Path) -> None:
    copy.ensemble_file.write_text("{}")
    training = train_run(str(archive), changed(archs=("test_byobnet",), epochs=1), copy.path, TrainOptions(fresh=True))
    assert training.reused == ()
    assert [member.name for member in copy.members()] == ["test_byobnet"]
    assert copy.members()[0].epochs == 1
    assert not copy.ensemble_file.exists()


def test_fresh_keeps_the_old_run_where_the_new_one_is_refused(copy: Run, tmp_path: Path) -> None:
    before = weights_of(copy)
    with pytest.raises(DataError, match="does not exist"):
        train_run(str(tmp_path / "nothing"), changed(epochs=1), copy.path, TrainOptions(fresh=True))
    assert weights_of(copy) == before


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(OutputError, match="is not a run and not empty"):
            train_run(str(archive), SETTINGS, tmp_path, TrainOptions(fresh=fresh))
    (tmp_path / "run.json").write_text('{"of": "another program"}')
    (tmp_path / "data").mkdir()
    with pytest.raises(OutputError, match="was not written by this version of plurum train"):
        train_run(str(archive), SETTINGS, tmp_path, TrainOptions(fresh=True))
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
    # Existing files stay.
    out.mkdir(parents=True)
    with pytest.raises(DataError):
        train_run(str(folder), changed(image_size=32), out)
    assert list(out.iterdir()) == []


def test_a_diverging_training_names_its_member(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(SettingsError, match="test_byobnet: the training diverged"):
        train_run(str(archive), changed(learning_rate=10, weight_decay=10, warmup_share=0, epochs=40), tmp_path / "run")
    assert not list((tmp_path / "run" / "members").glob("*"))


def test_seeds_and_snapshots_become_members(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "run"
    settings = changed(archs=("test_byobnet",), seeds=2, snapshots=2, epochs=2)
    members = train_run(str(archive), settings, out).members
    names = ["test_byobnet-snapshot-1", "test_byobnet-snapshot-2"]
    assert [member.name for member in members] == [*names, *(name.replace("net-", "net-2-") for name in names)]
    assert [member.seed for member in members] == [0, 0, 1, 1]
    assert [member.best_epoch for member in members] == [1, 2, 1, 2]
    assert len({member.sha256 for member in members}) == 4
    assert (out / "report" / "training.png").is_file()
    # New seeds follow the existing trainings.
    more = train_run(str(archive), settings.model_copy(update={"seeds": 3}), out)
    assert len(more.members) == 6
    assert more.reused == tuple(member.name for member in members)
    with pytest.raises(OutputError, match="--snapshots: expected 2, got 1"):
        train_run(str(archive), settings.model_copy(update={"seeds": 3, "snapshots": 1}), out)


@pytest.mark.slow
def test_parallel_jobs_train_the_same_weights(trained: Run, tmp_path: Path, archive: Path) -> None:
    training = train_run(str(archive), SETTINGS, tmp_path / "run", TrainOptions(jobs=2))
    assert [member.name for member in training.members] == list(ARCHS)
    assert weights_of(Run(tmp_path / "run")) == weights_of(trained)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "data", "members", "report"}


@pytest.mark.slow
def test_a_failing_job_gives_one_line_and_ends_the_others(tmp_path: Path, archive: Path) -> None:
    settings = changed(learning_rate=10, weight_decay=10, warmup_share=0, epochs=40)
    with pytest.raises(SettingsError, match=r"test_\w+: the training diverged"):
        train_run(str(archive), settings, tmp_path / "run", TrainOptions(jobs=2))
    assert multiprocessing.active_children() == []


def train_command(archive: Path, out: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "plurum", "train", str(archive), "--out", str(out), "--arch", ARCHS[0]]
    return [*command, "--batch-size", "16", "--learning-rate", "0.005", "--precision", "fp32", *options]


# The same number of threads as in these tests, because sums depend on it.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_the_end_of(group: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"the processes of group {group} are still there")


@pytest.mark.slow
def test_a_training_killed_at_random_resumes_with_the_same_weights(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send SIGKILL at least twice, during reading data, training, saving and writing the member."""
    settings = changed(archs=ARCHS[:1], epochs=12, ema=0.9, mixup=0.2, flip=True)
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    # The imports take longer than the training: a process that others are forked from does them once.
    monkeypatch.setenv("OMP_NUM_THREADS", ENVIRONMENT["OMP_NUM_THREADS"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["plurum.training.learning.run", "timm"])

    def start(run: Run) -> ForkServerProcess:
        arguments = (str(archive), settings, run.path, TrainOptions(save_every_s=0))
        process = context.Process(target=train_run, args=arguments)
        process.start()
        return process

    context.Process(target=int).start()
    began = time.monotonic()
    start(whole).join()
    took_s = time.monotonic() - began
    draws, has_state = random.Random(time.time_ns()), list[bool]()
    # At least one of them meets a training that has begun.
    while len(has_state) < 2 or not any(has_state):
        process = start(killed)
        process.join(draws.uniform(0.05, 0.9) * took_s)
        if process.exitcode is None:
            process.kill()
            has_state.append((killed.path / "unfinished" / f"{ARCHS[0]}.pt").is_file())
        process.join()
        if process.exitcode == 0:
            shutil.rmtree(killed.path)
    # A killed process leaves at most files with hidden names.
    found = [path for path in killed.path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert all(path.stat().st_size for path in found)
    start(killed).join()
    assert weights_of(killed) == weights_of(whole)
    assert killed.members()[0].validation == whole.members()[0].validation


@pytest.mark.slow
def test_ctrl_c_leaves_no_member_and_no_process(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "run"
    options = ["--arch", ARCHS[1], "--epochs", "200", "--jobs", "2", "--save-every-s", "0"]
    with subprocess.Popen(
        train_command(archive, out, *options),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not all((out / "unfinished" / f"{arch}.pt").is_file() for arch in ARCHS) and process.poll() is None:
            time.sleep(0.01)
        # A terminal sends it to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "plurum: interrupted; run the same command again to resume\n"
    wait_for_the_end_of(process.pid)
    assert not (out / "members").exists()


@pytest.mark.slow
def test_jobs_end_when_their_parent_is_killed(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "run"
    options = ["--arch", ARCHS[1], "--epochs", "5000", "--jobs", "2", "--save-every-s", "0"]
    with subprocess.Popen(
        train_command(archive, out, *options), env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not all((out / "unfinished" / f"{arch}.pt").is_file() for arch in ARCHS) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    wait_for_the_end_of(process.pid)


@pytest.mark.slow
def test_processes_of_torchrun_train_one_member_together(tmp_path: Path, archive: Path) -> None:
    """Without batch normalisation, two processes give the same result as one."""
    options = ["--arch", "test_vit2", "--epochs", "2", "--accumulate", "2", "--balance", "weights", "--shift", "0"]
    command = train_command(archive, tmp_path / "one", *options, "--image-size", "64")
    command[command.index("--arch") : command.index("--arch") + 2] = []
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    gather = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command[1:]]
    gather[gather.index(str(tmp_path / "one"))] = str(tmp_path / "two")
    done = subprocess.run(gather, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert done.stdout.count("next: plurum fit") == 1
    (one,), (two,) = Run(tmp_path / "one").members(), Run(tmp_path / "two").members()
    assert two.best_epoch == one.best_epoch
    assert one.validation is not None
    assert two.validation is not None
    assert two.validation.nll == pytest.approx(one.validation.nll, rel=1e-3)
    weights = [load_file(Run(tmp_path / name).checkpoint(one)) for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-3)
    histories = [(Run(tmp_path / name).member_folder(one.name) / "history.csv").read_text() for name in ("one", "two")]
    losses = [[float(row["train_loss"]) for row in csv.DictReader(io.StringIO(text))] for text in histories]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def joined_commands(command: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in two processes that train together, and return the exit of each."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [(process, *process.communicate(timeout=120)) for process in running]
    return [subprocess.CompletedProcess(command, process.returncode, *said) for process, *said in ended]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--batch-size", "2"), "--batch-size: expected at least 4, two images for each of 2 processes"),
        (("--arch", "resnet19"), "timm has no architecture 'resnet19'; did you mean "),
    ],
)
def test_with_torchrun_one_process_reports_the_error(
    tmp_path: Path, archive: Path, options: tuple[str, ...], line: str
) -> None:
    first, second = joined_commands(train_command(archive, tmp_path / "run", *options))
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.startswith(f"plurum: {line}")
    assert first.stderr.count("\n") == 1
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")
    assert not (tmp_path / "run").exists()


def test_partial_files_of_killed_processes_are_removed(copy: Run, archive: Path) -> None:
    left = [copy.path / ".data.k3", copy.path / "members" / ".test_resnet.k3", copy.path / "unfinished" / ".a.pt.k3"]
    for path in left[:2]:
        path.mkdir()
        (path / "pixels.npy").write_bytes(b"half")
    left[2].parent.mkdir()
    left[2].write_bytes(b"half")
    (copy.path / ".mine").write_text("kept")
    before = weights_of(copy)
    assert train_run(str(archive), SETTINGS, copy.path).reused == ARCHS
    assert not any(path.exists() for path in left)
    assert (copy.path / ".mine").read_text() == "kept"
    assert weights_of(copy) == before
