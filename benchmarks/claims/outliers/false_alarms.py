"""Measure how often the outlier test flags images that are like the training images.

    python -m plurum.benchmarks.claims.outliers.false_alarms --fashion /usr/share/datasets/fashion-mnist

Members are those of `plurum.benchmarks.claims.outliers`, trained once. Their novelty is the output of the graphs that
export would serve, in FP32 and in INT8. Patients are images that no training, validation or detector has seen: one
image each, or one to five variants of an image, moved and stained anew. Each redraw divides
the patients at random into a reference and fresh ones, and tests the fresh ones. Told are the fraction of flagged
images, a patient's images counting as one patient together, beside its law, and the fraction of patients with any
flagged image, about which nothing is promised. With one image per patient, the number of flagged images follows a
beta-binomial distribution, whatever the scores. Not measured: patients unlike those of the reference.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import betabinom

from plurum.benchmarks.claims.outliers.material import Images, Task, TaskName, read_tasks, stain
from plurum.benchmarks.claims.outliers.page import alarm_table
from plurum.benchmarks.claims.outliers.suite import ARCHS, ImageShare, compute_outputs, train_task
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.export import PixelModel, int8_from_onnx, onnx_from_model
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.repository.parity import stack_novelty
from plurum.export.settings import Precision
from plurum.files import write_text
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run
from plurum.training.fitting.detection import fit_detector
from plurum.training.inference.features import feature_model
from plurum.voting import OutlierTest

__all__ = ["false_alarms", "redraw"]

_ALPHAS = (0.01, 0.05)
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# Training images that INT8 is calibrated on, as many as by default in an export.
_CALIBRATION = 128
_CASE = ("task", "images", "precision", "alpha")
_MOST_IMAGES = 5
_MOVE = 1


def redraw(scores: Floats, patients: Ints, reference: int, alpha: float, draws: int, seed: int = 0) -> dict[str, float]:
    """Return how often fresh images are flagged over redraws of reference and fresh patients.

    Args:
        scores: Score of each image, `[images]`.
        patients: Patient of each image, from 0, `[images]`.
        reference: Number of reference patients of a draw; the others are fresh.
        alpha: P-value below which an image is flagged.
        draws: Number of redraws.
        seed: Random seed.

    Returns:
        By name: `mean` flagged fraction of images, its standard `error`, the `law` for one image per patient and its
        `law_spread`, the `spread` over draws, and the `patients` with a flagged image.
    """
    rng, number = np.random.default_rng(seed), int(patients.max()) + 1
    sizes = np.bincount(patients, minlength=number)
    found = []
    for _ in range(draws):
        is_reference = np.zeros(number, dtype=bool)
        is_reference[rng.choice(number, reference, replace=False)] = True
        known = is_reference[patients]
        order = np.argsort(scores[known])
        counts = None if sizes.max() == 1 else tuple((1 / sizes[patients[known]][order]).tolist())
        test = OutlierTest(alpha, (True,), (1.0,), tuple(scores[known][order].tolist()), counts, reference)
        flagged = np.bincount(patients[~known], test.test(scores[~known, None])[1], minlength=number)
        fresh = ~is_reference
        found.append([(flagged / sizes)[fresh].mean(), (flagged > 0)[fresh].mean()])
    images, any_of = np.array(found).T
    rank, others = math.ceil(alpha * (reference + 1) - 1e-9) - 1, number - reference
    law = betabinom(others, rank, reference + 1 - rank) if rank else None
    return {
        "mean": float(images.mean()),
        "error": float(images.std() / math.sqrt(draws)),
        "spread": float(images.std()),
        "law": rank / (reference + 1),
        "law_spread": float(law.std() / others) if law else 0.0,
        "patients": float(any_of.mean()),
    }


def _vary(greys: Images, rng: np.random.Generator) -> tuple[Images, Ints]:
    """Return one to five variants of each image, and the image that each is of."""
    patients = np.repeat(np.arange(len(greys)), rng.integers(1, _MOST_IMAGES + 1, len(greys)))
    moves = rng.integers(-_MOVE, _MOVE + 1, (len(patients), 2))
    moved = [np.roll(greys[index], move, axis=(0, 1)) for index, move in zip(patients, moves, strict=True)]
    return np.stack(moved), patients


def _write_graphs(run: Run, folder: Path) -> dict[Precision, list[Artefact]]:
    """Write each member's graph with its detector in every precision, and return the graphs."""
    table, pixels = run.table(), run.pixels()
    parts = {part: np.asarray(pixels[table.rows(part)]) for part in ("train", "validation")}
    labels = torch.from_numpy(table.labels[table.rows("train")])
    found: dict[Precision, list[Artefact]] = {precision: [] for precision in _PRECISIONS}
    for member in run.members():
        outputs = compute_outputs(run, member, parts)
        known, validation = (torch.from_numpy(one.features).float() for one in outputs.values())
        model = PixelModel(feature_model(run, member).cpu(), member.image, fit_detector(known, labels, validation))
        paths = {precision: folder / f"{member.name}.{precision}.onnx" for precision in _PRECISIONS}
        onnx_from_model(model, paths["fp32"])
        int8_from_onnx(paths["fp32"], parts["train"][:_CALIBRATION], paths["int8"])
        for precision, path in paths.items():
            found[precision].append(Artefact(member.name, precision, "onnxruntime", path, has_novelty=True))
    return found


def _patients(task: Task, seed: int) -> dict[str, tuple[Images, Ints]]:
    """Return images and patients, with one image and with several."""
    greys, rng = np.concatenate([task.greys["calibration"], task.greys["test"]]), np.random.default_rng([seed, 3])
    varied, patients = _vary(greys, rng)
    return {"1": (stain(greys, rng), np.arange(len(greys))), "1 to 5": (stain(varied, rng), patients)}


def _score_patients(
    run: Run, task: Task, name: TaskName, progress: command.Say
) -> Iterator[tuple[str, Precision, Floats, Ints]]:
    """Yield, for each number of images per patient and each precision, the scores and the patient of each image."""
    with tempfile.TemporaryDirectory() as folder:
        progress(f"{name}: to ONNX and INT8")
        graphs = _write_graphs(run, Path(folder))
        for images, (pixels, patients) in _patients(task, 0).items():
            for precision, members in graphs.items():
                progress(f"{name}: {images} images per patient, {precision}")
                novelty = stack_novelty([outputs_from_artefact(member, pixels).novelty for member in members])
                yield images, precision, novelty.mean(axis=1), patients


def false_alarms(  # noqa: PLR0913, PLR0917 - one parameter per option
    fashion: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    work: Annotated[Path, typer.Option(help="Folder that keeps data and runs.")] = Path("runs/outliers-work"),
    reference: Annotated[int, typer.Option(min=20, help="Reference patients of a draw.")] = 350,
    draws: Annotated[int, typer.Option(min=10, help="Redraws of reference and fresh patients.")] = 200,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each member.", show_default="by task")] = None,
    arch: command.Architectures = ARCHS,
    share: ImageShare = 1.0,
    page: Page = None,
) -> None:
    """Measure false alarms: a table on standard error, a line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"alarms": ""})
    rows = list[dict[str, Any]]()
    with command.measurement("reading images") as (say, state):
        for name, task in read_tasks(fashion, 0, share).items():
            say(f"{name}: training")
            run = train_task(task, name, 0, work, epochs, arch)
            for images, precision, scores, patients in _score_patients(run, task, name, say):
                for alpha in _ALPHAS:
                    case = {"task": name, "images": images, "precision": precision, "alpha": alpha}
                    rows.append(case | redraw(scores, patients, reference, alpha, draws))
    table = command.new_table(
        *_CASE, "flagged", "±", "law", "spread", "law", "patients", title=f"{draws} redraws, percent"
    )
    shown = ("mean", "error", "law", "spread", "law_spread", "patients")
    for row in rows:
        table.add_row(*(str(row[key]) for key in _CASE), *(f"{100 * row[key]:.2f}" for key in shown))
    if page is not None:
        write_text(page, page_with_tables(page, {"alarms": alarm_table(rows)}))
    command.print_report({"draws": draws, "reference": reference, "found": rows}, state, table)


if __name__ == "__main__":
    command.run_as_program(false_alarms)
