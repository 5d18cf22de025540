"""What several rooms' tests stand on: a fitted run on real images, its repository, and a server of that."""

from __future__ import annotations

import csv
import hashlib
import json
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
from plurum.run import DataContract, Run
from plurum.spec import Conformal, Ensemble, FittedOn, ImageSpec, Member, Review, Scores, Voting, write_contract

IMAGE = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARCHS = ("resnet10t", "regnetx_002")
_SCORES = Scores(images=40, accuracy=0.1, nll=2.3)


def _member(run: Run, arch: str, seed: int) -> Member:
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=len(CLASSES))
    # Untrained heads say the same to everything; louder ones have opinions that a wrong export would change.
    head = model.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.normal_(head.weight, std=2.0)
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
    write_contract(folder / "member.json", member)
    return member


def _data(run: Run) -> str:
    from PIL import Image

    digits = load_digits()
    images = (digits.images[:80] * 255 / 16).astype(np.uint8)
    pixels = np.stack([pixels_from_image(Image.fromarray(image), height=32, width=32) for image in images])
    run.data_folder.mkdir(parents=True)
    np.save(run.data_folder / "pixels.npy", pixels)
    with (run.data_folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split"])
        for index, label in enumerate(digits.target[:80]):
            split = "validation" if index < 40 else "test"
            writer.writerow([index, f"digits/{index}", CLASSES[label], "", split])
    fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()
    contract = DataContract(source="digits", fingerprint=fingerprint, classes=CLASSES, image=IMAGE)
    write_contract(run.data_folder / "contract.json", contract)
    return fingerprint


def build_run(folder: Path) -> Run:
    """Fill `folder` with a run of untrained members, real images and a rule in which every number matters."""
    run = Run(folder)
    fingerprint = _data(run)
    run.settings_file.write_text(json.dumps({}))
    members = tuple(_member(run, arch, seed) for seed, arch in enumerate(ARCHS))
    ensemble = Ensemble(
        name="digits-test",
        classes=CLASSES,
        image=IMAGE,
        members=members,
        voting=Voting(weights=(0.7, 0.3), temperature=1.5),
        conformal=Conformal(alpha=0.1, quantiles=(0.9,) * 5 + (0.6,) * 5),
        review=Review(threshold=0.5, risk=0.01),
        data=FittedOn(data="digits", fingerprint=fingerprint, images={"validation": 40, "test": 40}),
        scores={"validation": _SCORES},
    )
    write_contract(run.ensemble_file, ensemble)
    return run


@pytest.fixture
def fresh_run(tmp_path: Path) -> Run:
    """A run of this test's own, to break."""
    return build_run(tmp_path / "run")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fitted run that all tests read and none writes to."""
    return build_run(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's model repository, for all tests to read."""
    out = tmp_path_factory.mktemp("exported") / "model_repository"
    repository_from_run(run, out, ExportSettings(max_batch_size=8))
    return out
