"""Shared fixtures: a fitted run on real images, its model repository, and a server for it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from plurum.export import ExportSettings, repository_from_run
from plurum.files import sha256_of
from plurum.images import pixels_from_image
from plurum.models import model_from_checkpoint, normalise
from plurum.run import DataMetadata, Run
from plurum.serving import Server, ServerSettings
from plurum.spec import Conformal, Ensemble, FittedOn, ImageSpec, Member, Review, Scores, Voting, write_metadata
from plurum.voting import soft_vote, softmax, temper

IMAGE = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS, TEMPERATURE = (0.7, 0.3), 1.2
ARCHS = ("resnet10t", "regnetx_002")
_IMAGES = 400
_SCORES = Scores(images=40, accuracy=0.1, nll=2.3)


def _member(run: Run, arch: str, seed: int) -> Member:
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=len(CLASSES))
    _learn_a_little(model, run)
    folder = run.member_folder(arch)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "checkpoint.safetensors")
    member = Member(
        name=arch,
        arch=arch,
        sha256=sha256_of(folder / "checkpoint.safetensors"),
        classes=CLASSES,
        image=IMAGE,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seed=seed,
        precision="fp32",
        epochs=1,
        best_epoch=1,
        validation=_SCORES,
    )
    write_metadata(folder / "member.json", member)
    return member


def _learn_a_little(model: torch.nn.Module, run: Run) -> None:
    """Train just enough for predictions that differ between images and between members."""
    table, pixels = run.table(), torch.from_numpy(np.array(run.pixels()))
    rows = torch.from_numpy(table.rows("train"))
    labels = torch.from_numpy(table.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # Steps this small don't benefit from more threads, which cost much on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(12):
        for batch in rows[torch.randperm(len(rows))].split(64):
            loss = torch.nn.functional.cross_entropy(model(normalise(pixels[batch], IMAGE)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.set_num_threads(threads)


def _data(run: Run) -> str:
    from PIL import Image

    digits = load_digits()
    images = (digits.images[:_IMAGES] * 255 / 16).astype(np.uint8)
    pixels = np.stack([pixels_from_image(Image.fromarray(image), height=32, width=32) for image in images])
    run.data_folder.mkdir(parents=True)
    np.save(run.data_folder / "pixels.npy", pixels)
    with (run.data_folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split"])
        for index, label in enumerate(digits.target[:_IMAGES]):
            split = "validation" if index < 40 else "test" if index < 80 else "train"
            writer.writerow([index, f"digits/{index}", CLASSES[label], "", split])
    fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()
    metadata = DataMetadata(source="digits", fingerprint=fingerprint, classes=CLASSES, image=IMAGE)
    write_metadata(run.data_folder / "contract.json", metadata)
    return fingerprint


def _dividing(run: Run, members: tuple[Member, ...]) -> tuple[float, float]:
    """Return a review threshold and a conformal quantile that split the first test images, whatever their predictions.

    Half of them are below the threshold; with the quantile, one of them has a second class in its set.
    """
    pixels = torch.from_numpy(np.array(run.pixels()[40:48]))
    with torch.inference_mode():
        logits = [model_from_checkpoint(one, run.checkpoint(one))(normalise(pixels, IMAGE)).numpy() for one in members]
    vote = temper(soft_vote(softmax(np.stack(logits, axis=1)), WEIGHTS), TEMPERATURE)
    second, first = np.sort(vote, axis=1)[:, -2:].T
    return float(np.median(first)), float(1 - np.sort(second)[-2:].mean())


def build_run(folder: Path) -> Run:
    """Write a run with barely trained members, real images and a rule in which every number matters."""
    run = Run(folder)
    fingerprint = _data(run)
    run.settings_file.write_text(json.dumps({}))
    members = tuple(_member(run, arch, seed) for seed, arch in enumerate(ARCHS))
    threshold, quantile = _dividing(run, members)
    ensemble = Ensemble(
        name="digits-test",
        classes=CLASSES,
        image=IMAGE,
        members=members,
        voting=Voting(weights=WEIGHTS, temperature=TEMPERATURE),
        conformal=Conformal(alpha=0.1, quantiles=(quantile,) * len(CLASSES)),
        review=Review(threshold=threshold, risk=0.01),
        data=FittedOn(data="digits", fingerprint=fingerprint, images={"train": 320, "validation": 40, "test": 40}),
        scores={"validation": _SCORES},
    )
    write_metadata(run.ensemble_file, ensemble)
    return run


@pytest.fixture
def fresh_run(run: Run, tmp_path: Path) -> Run:
    """Copy of the run that a test may modify."""
    return Run(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run, shared by all tests and read-only."""
    return build_run(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model repository of the run, shared by all tests and read-only."""
    out = tmp_path_factory.mktemp("exported") / "model_repository"
    repository_from_run(run, out, ExportSettings(max_batch_size=8))
    return out


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Server]:
    """Running server for that repository, shared by all tests."""
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@dataclass(frozen=True)
class Demo:
    """Result of `plurum demo` in an empty folder.

    Attributes:
        folder: Its working directory.
        output: What it printed.
        took_s: How long it took, seconds.
        cpu_s: How long processors were busy with it, seconds.
    """

    folder: Path
    output: str
    took_s: float
    cpu_s: float

    def again(self) -> Demo:
        """Run the demo again in the same folder."""
        return run_demo(self.folder)


def run_demo(folder: Path) -> Demo:
    """Run the demo in `folder`, as a user does."""
    start, used = time.monotonic(), _children_s()
    ended = subprocess.run(
        [sys.executable, "-m", "plurum", "demo"],
        cwd=folder,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return Demo(folder, ended.stdout, time.monotonic() - start, _children_s() - used)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Result of the demo, run once for all tests."""
    return run_demo(tmp_path_factory.mktemp("demo"))
