"""Fixtures with small real data, and runs trained on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plurum.run import Run
from plurum.training import TrainSettings, train_run
from tests.sample_runs.build_once import build_once
from tests.sample_runs.trained_run import SETTINGS
from tests.training.data_files import digit_arrays, save_npz


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: such small steps gain nothing from more, and waiting is slow on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a MedMNIST archive shared by all tests, read-only."""
    # One file for all processes: the run below remembers when it was changed.
    return build_once(tmp_path_factory, "digitmnist.npz", lambda out: save_npz(out, digit_arrays()))


@pytest.fixture(scope="session")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two members shared by all tests, read-only."""
    return Run(build_once(tmp_path_factory, "trained", lambda out: train_run(str(archive), SETTINGS, out)))


@pytest.fixture(scope="session")
def spoilt(trained: Run, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with a third member, stopped after one epoch at a too high learning rate."""
    folder = tmp_path_factory.mktemp("spoilt")
    settings = TrainSettings(archs=("test_efficientnet",), epochs=1, batch_size=16, learning_rate=0.1, precision="fp32")
    train_run(str(archive), settings, folder / "other")
    shutil.copytree(trained.path, folder / "run")
    member = Run(folder / "other").member_folder("test_efficientnet")
    shutil.copytree(member, folder / "run" / "members" / "test_efficientnet")
    return Run(folder / "run")


@pytest.fixture
def unfitted(trained: Run, tmp_path: Path) -> Run:
    """Return a copy of the finished run for one test, not fitted."""
    shutil.copytree(trained.path, tmp_path / "two members!")
    return Run(tmp_path / "two members!")
