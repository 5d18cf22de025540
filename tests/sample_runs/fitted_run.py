"""A fitted run on real images, whose members are trained just enough to differ."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from plurum.images import pixels_from_image
from plurum.models import model_from_checkpoint, normalise
from plurum.run import DataMetadata, Run
from plurum.spec import Conformal, Ensemble, FittedOn, ImageSpec, Member, Review, Scores, Voting, write_metadata
from plurum.voting import soft_vote, softmax, temper
from tests.sample_runs.members import write_member

__all__ = ["ARCHS", "CLASSES", "IMAGE", "TEMPERATURE", "WEIGHTS", "build_run"]

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
    facts = {"seed": seed, "precision": "fp32", "epochs": 1, "best_epoch": 1, "validation": _SCORES}
    return write_member(run, model, arch, CLASSES, IMAGE, facts)


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
