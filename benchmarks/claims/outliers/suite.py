"""Train the members of a task, and score images of every kind with every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from plurum.benchmarks.claims.outliers.material import FAR, NEAR, Images, Task, TaskName, make_kinds, write_archive
from plurum.benchmarks.claims.outliers.methods import METHODS, KnownImages, MemberOutputs
from plurum.benchmarks.claims.outliers.result import KindFigure
from plurum.models import model_from_checkpoint, normalise
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.settings.training import TrainSettings
from plurum.spec import Member
from plurum.training.inference.features import feature_model
from plurum.training.learning.run import train_run
from plurum.voting import entropy, mutual_information, softmax

__all__ = ["ARCHS", "ImageShare", "compute_outputs", "measure_task", "train_task"]

ARCHS = ["resnet10t", "regnetx_002", "ese_vovnet19b_slim_dw"]
ImageShare = Annotated[
    float, typer.Option(min=0.01, max=1, help="Fraction of the images to use; less is faster and less exact.")
]
_EPOCHS: dict[TaskName, int] = {"digits": 25, "fashion": 10}
_BATCH: dict[TaskName, int] = {"digits": 32, "fashion": 64}
_DETECTED = 0.95


def train_task(
    task: Task, name: TaskName, seed: int, work: Path, epochs: int | None = None, archs: Sequence[str] = ARCHS
) -> Run:
    """Return a run of a member for each architecture, trained once in a folder below `work`."""
    folder = work / f"{name}{seed}"
    if not (folder / "data.npz").is_file():
        write_archive(task, folder / "data.npz", seed)
    settings = TrainSettings(
        archs=tuple(archs),
        epochs=epochs or _EPOCHS[name],
        batch_size=_BATCH[name],
        seed=100 * seed,
        precision="fp32",
        learning_rate=3e-3,
    )
    train_run(str(folder / "data.npz"), settings, folder / "run")
    return Run(folder / "run")


def measure_task(run: Run, task: Task, other: Task, name: TaskName, seed: int) -> tuple[list[KindFigure], float]:
    """Return AUROC and FPR at 95 % detection of every kind by every method, and the members' mean accuracy."""
    table, pixels = run.table(), run.pixels()
    images = make_kinds(task, other, seed)
    images |= {part: np.asarray(pixels[table.rows(part)]) for part in ("train", "validation")}
    scores: dict[str, list[dict[str, Floats]]] = {method: [] for method in METHODS}
    members = []
    for member in run.members():
        outputs = compute_outputs(run, member, images)
        known = KnownImages(outputs["train"], table.labels[table.rows("train")], *_classifying_layer(run, member))
        for method, fit in METHODS.items():
            scorer = fit(known)
            scores[method].append(_standardise({part: scorer(one) for part, one in outputs.items()}))
        members.append({part: one.logits for part, one in outputs.items()})
    by_method = {
        method: {part: np.mean([one[part] for one in found], axis=0) for part in images}
        for method, found in scores.items()
    }
    probabilities = {part: softmax(np.stack([one[part] for one in members], axis=1)) for part in images}
    weights = (1 / len(members),) * len(members)
    by_method["entropy"] = {part: entropy(one.mean(axis=1)) for part, one in probabilities.items()}
    by_method["disagreement"] = {part: mutual_information(one, weights) for part, one in probabilities.items()}
    by_method["MSP"] = {part: -one.mean(axis=1).max(axis=1) for part, one in probabilities.items()}
    right = np.mean([one["test"].argmax(axis=1) == task.labels["test"] for one in members])
    figures = [
        KindFigure(task=name, seed=seed, method=method, kind=kind, **_compare(found["test"], found[kind]))
        for method, found in by_method.items()
        for kind in (*FAR, *NEAR)
    ]
    return figures, float(right)


def compute_outputs(run: Run, member: Member, images: Mapping[str, Images]) -> dict[str, MemberOutputs]:
    """Return a member's features and logits for images, by their names."""
    model = feature_model(run, member)
    found = {}
    with torch.inference_mode():
        for name, pixels in images.items():
            parts = [model(normalise(block, member.image)) for block in torch.from_numpy(pixels).split(128)]
            logits, features = (torch.cat(one).double().numpy() for one in zip(*parts, strict=True))
            found[name] = MemberOutputs(features, logits)
    return found


def _classifying_layer(run: Run, member: Member) -> tuple[Floats, Floats]:
    """Return weights and biases of a member's last layer."""
    layer: Any = model_from_checkpoint(member, run.checkpoint(member))
    last = layer.get_classifier()
    return last.weight.detach().double().numpy(), last.bias.detach().double().numpy()


def _standardise(scores: dict[str, Floats]) -> dict[str, Floats]:
    """Return scores such that those of validation images have a mean of 0 and a deviation of 1."""
    known = scores["validation"]
    return {part: (one - known.mean()) / known.std() for part, one in scores.items()}


def _compare(known: Floats, unlike: Floats) -> dict[str, float]:
    """Return AUROC, and the fraction of known images that are flagged where 95 % of the outliers are."""
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(len(known)), np.ones(len(unlike))])
    limit = np.quantile(unlike, 1 - _DETECTED)
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate([known, unlike]))),
        "fpr95": float((known >= limit).mean()),
    }
