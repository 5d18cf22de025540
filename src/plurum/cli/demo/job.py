"""The stages of `plurum demo`: train, fit, export, serve, predict over gRPC and HTTP, read metrics.

RUN/                    a run, see `plurum.run`
RUN/held_out/CLASS/     the test images as PNG files, which are sent to the server
RUN/model_repository/   the served model repository
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from plurum.client import EnsembleClient, Prediction
from plurum.errors import ParityError
from plurum.export import ExportSettings, repository_from_run
from plurum.files import atomic_folder
from plurum.progress import show_status
from plurum.run import Run
from plurum.serving import Server, ServerSettings, find_triton
from plurum.serving.triton.metrics import metrics_at
from plurum.spec import Ensemble, Scores
from plurum.training import (
    EvaluationSettings,
    FitSettings,
    LabelledImages,
    TrainOptions,
    TrainSettings,
    evaluate_run,
    fit_run,
    load_data,
    train_run,
    write_report,
)
from plurum.training.inference.predictions import decide_splits
from plurum.voting import Verdict

__all__ = ["HeldOut", "compare_predictions", "increased_samples", "run_demo", "write_held_out"]

DATA = "digits"
# bf16 is no faster for images of 32 x 32 pixels.
SETTINGS = TrainSettings(
    archs=("resnet10t", "dla46_c", "ese_vovnet19b_slim_dw"), epochs=8, learning_rate=3e-3, precision="fp32"
)
TOLERANCE = 1e-3
"""Largest difference of a probability between a served prediction and PyTorch's."""
WATCHED = (
    "plurum_predictions_total",
    "plurum_reviews_total",
    "plurum_confidence_count",
    "nv_inference_request_success",
)
# Stricter than the default, so that some of the digits, which are easy, need review.
RISK = 0.002
_SHOWN = 8


@dataclass(frozen=True)
class HeldOut:
    """The run's test images with their labels and PyTorch's predictions.

    Attributes:
        paths: Paths of the image files.
        labels: True classes, int64 `[images]`.
        verdict: Vote over the members' outputs in PyTorch.
        classes: Class names, in the order of the labels.
    """

    paths: list[Path]
    labels: npt.NDArray[np.int64]
    verdict: Verdict
    classes: tuple[str, ...]


def run_demo(out: Path, *, fresh: bool = False) -> None:
    """Run all stages, and print the results to standard output.

    Raises:
        OutputError: `out` is not a run.
        ParityError: outputs of a graph or of the server differ from PyTorch's.
        ServerError: the server does not start.
    """
    start = time.monotonic()
    say, run, repository = Console(), Run(out), out / "model_repository"
    # First, because what is missing should be told before the minutes of training.
    find_triton()
    say.rule("1. train three classifiers on scikit-learn's digits")
    train_run(DATA, SETTINGS, out, TrainOptions(fresh=fresh))
    say.rule("2. fit them into one calibrated ensemble")
    ensemble = fit_run(out, FitSettings(risk=RISK))
    _say_scores(say, ensemble)
    report = write_report(evaluate_run(out, EvaluationSettings()), run.report_folder)
    say.rule("3. export to ONNX and assemble the model repository")
    with show_status("exporting") as update:
        exported = repository_from_run(run, repository, ExportSettings(), update)
    if exported.unchanged:
        say.print(f"{repository} is up to date with these members")
    else:
        say.print(f"exported to {repository}; every graph matches PyTorch on real images (parity.json)")
    held_out = _held_out(run, ensemble)
    say.rule("4. serve on Triton, predict over gRPC and HTTP, read metrics")
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        before = metrics_at(server.urls.metrics)
        predictions = _predict(server.urls.grpc, "grpc", held_out.paths)
        _say_least_certain(say, held_out, predictions)
        _say_comparison(say, held_out, predictions, "gRPC")
        _say_comparison(say, held_out, _predict(server.urls.http, "http", held_out.paths), "HTTP")
        say.print(f"counters of {server.urls.metrics} that increased:", soft_wrap=True)
        # The voter publishes its counts within a second.
        time.sleep(1)
        for sample, old, new in increased_samples(before, metrics_at(server.urls.metrics), *WATCHED):
            say.print(f"  {sample} {old:g} -> {new:g}", highlight=False, soft_wrap=True, markup=False)
    _say_places(say, run, repository, report, time.monotonic() - start)


def write_held_out(run: Run, images: LabelledImages) -> list[Path]:
    """Write the run's test images as files, `RUN/held_out/CLASS/INDEX.png`, and return them in the run's order."""
    table, classes, folder = run.table(), run.data().classes, run.path / "held_out"
    rows = table.rows("test")
    names = [Path(classes[table.labels[row]], f"{row:05d}.png") for row in rows]
    if not folder.is_dir():
        with atomic_folder(folder) as hidden:
            for row, name in zip(rows, names, strict=True):
                (hidden / name).parent.mkdir(exist_ok=True)
                (hidden / name).write_bytes(images.read_encoded(int(row)))
    return [folder / name for name in names]


def compare_predictions(predictions: list[Prediction], held_out: HeldOut) -> tuple[float, float]:
    """Return the accuracy of served labels, and the largest difference of a served probability from PyTorch's.

    Raises:
        ParityError: a label differs, or a probability differs by more than `TOLERANCE`.
    """
    served = np.array([[prediction.probabilities[name] for name in held_out.classes] for prediction in predictions])
    difference = float(np.abs(served - held_out.verdict.probabilities).max())
    given = np.array([held_out.classes.index(prediction.label) for prediction in predictions])
    flips = int(np.count_nonzero(given != held_out.verdict.label))
    if flips or not difference <= TOLERANCE:
        raise ParityError(
            f"served predictions differ from PyTorch's: {flips} of {len(predictions)} labels, and probabilities by up "
            f"to {difference:.2g}; at most {TOLERANCE:g} is allowed"
        )
    return float(np.mean(given == held_out.labels)), difference


def increased_samples(before: dict[str, float], after: dict[str, float], *names: str) -> list[tuple[str, float, float]]:
    """Return (sample, before, after) for each sample of the metrics `names` that increased."""
    return [
        (sample, before.get(sample, 0.0), value)
        for sample, value in after.items()
        if sample.split("{")[0] in names and value > before.get(sample, 0.0)
    ]


def _held_out(run: Run, ensemble: Ensemble) -> HeldOut:
    table = run.table()
    paths = write_held_out(run, load_data(DATA, SETTINGS.seed))
    verdict = decide_splits(run, ensemble, ("test",))["test"]
    return HeldOut(paths, table.labels[table.rows("test")], verdict, ensemble.classes)


def _predict(url: str, protocol: Literal["grpc", "http"], paths: list[Path]) -> list[Prediction]:
    with EnsembleClient(url, protocol=protocol) as client:
        return client.predict(paths)


def _say_scores(say: Console, ensemble: Ensemble) -> None:
    table = Table("", "validation accuracy", "NLL", "weight")
    for member, weight in zip(ensemble.members, ensemble.voting.weights, strict=True):
        table.add_row(member.name, *_cells(member.validation), f"{weight:.3f}")
    table.add_row("the ensemble", *_cells(ensemble.scores["validation"]), "", style="bold")
    say.print(table)


def _cells(scores: Scores | None) -> tuple[str, str]:
    return ("", "") if scores is None else (f"{scores.accuracy:.4f}", f"{scores.nll:.4f}")


def _say_least_certain(say: Console, held_out: HeldOut, predictions: list[Prediction]) -> None:
    table = Table("held-out image", "served", "PyTorch", "entropy", "disagreement", "review")
    for index in np.argsort([prediction.confidence for prediction in predictions])[:_SHOWN]:
        prediction, path, winner = predictions[index], held_out.paths[index], held_out.verdict.label[index]
        table.add_row(
            f"{path.parent.name}/{path.name}",
            f"{prediction.label} {prediction.confidence:.5f}",
            f"{held_out.classes[winner]} {held_out.verdict.probabilities[index, winner]:.5f}",
            f"{prediction.entropy:.3f}",
            f"{prediction.disagreement:.3f}",
            "yes" if prediction.review else "",
        )
    say.print(f"the {_SHOWN} least certain predictions, compared with PyTorch's:")
    say.print(table)


def _say_comparison(say: Console, held_out: HeldOut, predictions: list[Prediction], protocol: str) -> None:
    accuracy, difference = compare_predictions(predictions, held_out)
    say.print(
        f"over {protocol}: {len(predictions)} held-out images, accuracy of the served labels "
        f"{accuracy:.4f}; labels equal PyTorch's, probabilities within {difference:.1e}; "
        f"{sum(prediction.review for prediction in predictions)} need review",
        soft_wrap=True,
    )


def _say_places(say: Console, run: Run, repository: Path, report: Path, took_s: float) -> None:
    say.rule(f"done in {took_s:.0f} s")
    for what, place in (
        ("members", run.path / "members"),
        ("vote", run.ensemble_file),
        ("evaluation", report),
        ("held-out images", run.path / "held_out"),
        ("model repository", repository),
    ):
        say.print(f"{what + ':':18}{place}", soft_wrap=True, highlight=False)
    say.print(f"serve it: plurum serve {repository}", soft_wrap=True, highlight=False)
    say.print(f"try it:   plurum predict {run.path / 'held_out'}", soft_wrap=True, highlight=False)
