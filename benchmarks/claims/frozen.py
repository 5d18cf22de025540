"""Compare training a frozen backbone's head with training the whole model: time per member, and scores.

    python -m plurum.benchmarks.claims.frozen --page docs/backbones.md

Measured, on one machine in one run: seconds to train one member, from making the model to the weights of the best
epoch, on scikit-learn's digits and on images of Fashion-MNIST. The backbone of each is a small model that this script
trains on the other data first. Both sides start from its weights, with the same images, epochs and batches, and take
turns. A frozen backbone's first member computes the features, which later ones read from the cache; the first is
reported apart. Figures are medians over the members of a side.

Not measured: decoding images, a larger backbone (whose features take longer, but also its whole training), a GPU.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.export.repository.cards.markup import table_from_rows
from plurum.files import write_text
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec
from plurum.training import load_data
from plurum.training.data.examples import Examples
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.frozen import fit_model
from plurum.training.learning.trainer import Trainer

__all__ = ["compare_sides", "frozen"]

_FASHION = Path("/usr/share/datasets/fashion-mnist")
_COLUMNS = ("", "full, s", "first frozen, s", "later frozen, s", "later / full", "NLL full", "NLL frozen")


def frozen(
    arch: Annotated[str, typer.Option(help="Architecture of the backbone.")] = "resnet10t",
    images: Annotated[int, typer.Option(min=100, help="Number of images of Fashion-MNIST.")] = 2000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 8,
    members: Annotated[int, typer.Option(min=2, help="Members of each side.")] = 3,
    fashion: Annotated[Path, typer.Option(help="Folder with the files of Fashion-MNIST.", exists=True)] = _FASHION,
    page: Page = None,
) -> None:
    """Compare --freeze with full training: a table on standard error, one line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"frozen": ""})
    state = machine()
    data = {"digits": _examples("digits"), "fashion-mnist": _examples(str(fashion), images)}
    figures: dict[str, dict[str, float]] = {}
    table, rows = command.new_table(*_COLUMNS), list[tuple[str, ...]]()
    for name, other in (("digits", "fashion-mnist"), ("fashion-mnist", "digits")):
        with _empty_cache() as folder:
            found = figures[name] = compare_sides(arch, data[name], data[other], epochs, members, folder)
        seconds = (f"{found[key]:.2f}" for key in ("full_s", "first_frozen_s", "later_frozen_s"))
        scores = (f"{found[key]:.3f}" for key in ("ratio", "full_nll", "frozen_nll"))
        rows.append((name, *seconds, *scores))
        table.add_row(*rows[-1])
    command.print_report({"arch": arch, "epochs": epochs, "images": images, "data": figures}, state, table)
    if page is not None:
        write_text(page, page_with_tables(page, {"frozen": table_from_rows(_COLUMNS, rows)}))


def compare_sides(
    arch: str, examples: Examples, other: Examples, epochs: int, members: int, folder: Path
) -> dict[str, float]:
    """Return seconds per member and median validation scores of both sides, and the ratio of later members' seconds.

    Args:
        arch: Architecture of the backbone.
        examples: Images to learn.
        other: Images that the backbone learns first.
        epochs: Epochs of each training.
        members: Members of each side, at least 2.
        folder: Folder for the backbone.
    """
    source = f"local-dir:{_train_backbone(arch, other, epochs, folder / 'backbone')}"
    base: dict[str, Any] = {"archs": (source,), "pretrained": True, "epochs": epochs, "precision": "fp32"}
    sides = {
        "full": TrainSettings(**base),
        # The rate that suits a layer on features; no more epochs than the other side.
        "frozen": TrainSettings(**base, freeze=True, learning_rate=1e-2),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    scores: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for seed in range(members):
        for side in sorted(sides, reverse=bool(seed % 2)):
            start = time.perf_counter()
            model = model_from_arch(source, examples.classes, seed, pretrained=True)
            best = fit_model(Trainer(sides[side]), model, examples, seed).best.validation
            seconds[side].append(time.perf_counter() - start)
            scores[side].append((best.nll, best.accuracy))
    full, later = statistics.median(seconds["full"]), statistics.median(seconds["frozen"][1:])
    medians = {
        side: [statistics.median(values) for values in zip(*found, strict=True)] for side, found in scores.items()
    }
    return {
        "full_s": full,
        "first_frozen_s": seconds["frozen"][0],
        "later_frozen_s": later,
        "ratio": later / full,
        **{f"{side}_nll": nll for side, (nll, _) in medians.items()},
        **{f"{side}_accuracy": accuracy for side, (_, accuracy) in medians.items()},
    }


@contextmanager
def _empty_cache() -> Iterator[Path]:
    """Use an empty cache during a `with` block, so that the first frozen member finds no features."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _train_backbone(arch: str, examples: Examples, epochs: int, folder: Path) -> Path:
    """Train a model on `examples` and save it as timm does."""
    from timm.models import save_for_hf

    model, saved = (model_from_arch(arch, examples.classes, 0) for _ in range(2))
    trained = Trainer(TrainSettings(archs=(arch,), epochs=epochs, precision="fp32")).fit(model, examples, 0)
    # Training leaves the first model in a memory format that safetensors refuses.
    saved.load_state_dict(trained.best.weights)
    normalisation = {"mean": examples.image.mean, "std": examples.image.std}
    save_for_hf(saved, str(folder), data_config=normalisation, safe_serialization=True)
    return folder


def _examples(source: str, images: int | None = None) -> Examples:
    """Return images as `plurum train` uses them, at 32 x 32 pixels; a random part of them if `images` is not None."""
    data = load_data(source)
    image = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
    table = data.table
    train, validation = table.rows("train"), table.rows("validation")
    if images is not None:
        rng = np.random.default_rng(0)
        part = images / (len(train) + len(validation))
        train, validation = (np.sort(rng.permutation(rows)[: round(part * len(rows))]) for rows in (train, validation))
        data, rows = data.select(np.concatenate([train, validation])), len(train)
        train, validation = np.arange(rows), np.arange(rows, len(data.table.labels))
    return Examples(data.pixels(image), data.table.labels, train, validation, len(data.classes), image)


if __name__ == "__main__":
    torch.manual_seed(0)
    command.run_as_program(frozen)
