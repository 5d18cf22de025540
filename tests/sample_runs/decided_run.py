"""An unfitted run of two classes and many patients, made in seconds: members are random features with a fitted end."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from plurum.images import pixels_from_image
from plurum.models import normalise
from plurum.run import OTHER_COLUMN, DataMetadata, Run
from plurum.spec import ImageSpec, write_metadata
from tests.sample_runs.members import write_member

__all__ = ["CLASSES", "add_column", "build_decided_run"]

IMAGE = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
CLASSES = ("CE", "LAA")
ARCHS = ("test_resnet", "test_byobnet")
_SPLITS = {"train": 300, "validation": 600, "test": 200}
# Images of a patient.
_IMAGES = 2


def build_decided_run(folder: Path, certification: int = 0) -> Run:
    """Write a run in which even digits are CE and odd ones LAA, of which the members learn a part.

    Args:
        folder: Folder of the run.
        certification: Number of certification images, up to 680.
    """
    run = Run(folder)
    _write_data(run, {**_SPLITS, "certification": certification})
    run.settings_file.write_text(json.dumps({}))
    for seed, arch in enumerate(ARCHS):
        _write_member(run, arch, seed)
    return run


def _write_data(run: Run, counts: dict[str, int]) -> None:
    digits = load_digits()
    number = sum(counts.values())
    # Patients have images of one class only.
    order = np.concatenate([np.flatnonzero(digits.target % 2 == odd)[: number // 2] for odd in (0, 1)])
    pairs = np.random.default_rng(0).permutation(order.reshape(-1, _IMAGES)).ravel()
    images = (digits.images[pairs] * 255 / 16).astype(np.uint8)
    pixels = np.stack([pixels_from_image(Image.fromarray(image), height=32, width=32) for image in images])
    run.data_folder.mkdir(parents=True)
    np.save(run.data_folder / "pixels.npy", pixels)
    splits = [name for name, count in counts.items() for _ in range(count)]
    with (run.data_folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "label", "patient", "split"])
        for index, (row, split) in enumerate(zip(pairs, splits, strict=True)):
            label = CLASSES[digits.target[row] % 2]
            writer.writerow([index, f"digits/{row}", label, f"patient {index // _IMAGES}", split])
    fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()
    write_metadata(
        run.data_folder / "contract.json",
        DataMetadata(source="digits", fingerprint=fingerprint, classes=CLASSES, image=IMAGE),
    )


def add_column(run: Run, name: str, values: Sequence[str]) -> None:
    """Add a manifest's column to the run's table: each patient gets one of the values, in turn."""
    path = run.data_folder / "items.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row[f"{OTHER_COLUMN}{name}"] = values[int(row["index"]) // _IMAGES % len(values)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_member(run: Run, arch: str, seed: int) -> None:
    torch.manual_seed(seed)
    model: Any = timm.create_model(arch, num_classes=len(CLASSES)).eval()
    table = run.table()
    rows = table.rows("train")
    with torch.inference_mode():
        images = normalise(torch.from_numpy(run.pixels()[rows]), IMAGE)
        features = model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=0.05, max_iter=500).fit((features - mean) / scale, table.labels[rows])
    weight = fitted.coef_[0] / scale
    bias = fitted.intercept_[0] - weight @ mean
    end = model.get_classifier()
    with torch.no_grad():
        end.weight.copy_(torch.from_numpy(np.stack([-weight / 2, weight / 2])))
        end.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    write_member(run, model, arch, CLASSES, IMAGE)
