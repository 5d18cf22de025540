"""The main job on real images: train, fit, export, serve, ask over gRPC and HTTP, measure.

RUN/                    as `plurum.run` draws it
RUN/held_out/CLASS/     the test images as PNG, which the server is asked about
RUN/model_repository/   what is served
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from plurum.client import EnsembleClient, Prediction
from plurum.errors import ParityError
from plurum.export import ExportSettings, repository_from_run
from plurum.files import whole_folder
from plurum.models import model_from_checkpoint, normalised
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.serving.triton.metrics import metrics_at
from plurum.spec import Ensemble, Scores
from plurum.training import (
    FitSettings,
    JudgeSettings,
    LabelledImages,
    TrainOptions,
    TrainSettings,
    fit_run,
    judge_run,
    load_data,
    train_run,
    write_report,
)
from plurum.voting import Verdict, decide, softmax

__all__ = [
    "Comparison",
    "HeldOut",
    "compared",
    "grown",
    "main_job",
    "pytorch_verdict",
    "write_held_out",
]

DATA = "digits"
# Images of 32 x 32 gain nothing from bf16.
SETTINGS = TrainSettings(
    archs=("resnet10t", "dla46_c", "ese_vovnet19b_slim_dw"), epochs=8, learning_rate=3e-3, precision="fp32"
)
TOLERANCE = 1e-3
"""Largest difference of a probability between a served answer and PyTorch's own."""
WATCHED = (
    "plurum_predictions_total",
    "plurum_reviews_total",
    "plurum_confidence_count",
    "nv_inference_request_success",
)
# Stricter than the default, so that digits, which are easy, leave something for a person to look at.
RISK = 0.002
_SHOWN = 8


@dataclass(frozen=True)
class HeldOut:
    """The run's test images, what they are, and what PyTorch says of them.

    Attributes:
        paths: Of the image files.
        labels: `[images]`, int64, the truth.
        verdict: PyTorch's own members and the same vote.
        classes: Names, in the order of the labels.
    """

    paths: list[Path]
    labels: npt.NDArray[np.int64]
    verdict: Verdict
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Served answers beside PyTorch's own for the same images.

    Attributes:
        accuracy: Of the served labels, 0 to 1.
        max_difference: Largest difference of any probability, 0 to 1.
    """

    accuracy: float
    max_difference: float


def main_job(out: Path, *, fresh: bool = False) -> None:
    """Do all of it, and say on standard output what came of it.

    Raises:
        OutputError: `out` holds something else than a run.
        ParityError: a graph or the server answers otherwise than PyTorch.
        ServerError: the server does not start.
    """
    start = time.monotonic()
    say, run, repository = Console(), Run(out), out / "model_repository"
    say.rule("1. train three classifiers on scikit-learn's digits")
    train_run(DATA, SETTINGS, out, TrainOptions(fresh=fresh))
    say.rule("2. fit them into one calibrated ensemble")
    ensemble = fit_run(out, FitSettings(risk=RISK))
    _say_scores(say, ensemble)
    report = write_report(judge_run(out, JudgeSettings()), run.report_folder)
    say.rule("3. export to ONNX and assemble the model repository")
    with Console(stderr=True).status("exporting") as status:
        exported = repository_from_run(run, repository, ExportSettings(), status.update)
    if exported.unchanged:
        say.print(f"{repository} is of exactly these members already")
    else:
        say.print(f"exported to {repository}, every graph as PyTorch on real images (parity.json)")
    held_out = _held_out(run, ensemble)
    say.rule("4. serve on Triton, ask over gRPC and HTTP, measure")
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        before = metrics_at(server.urls.metrics)
        answers = _asked(server.urls.grpc, "grpc", held_out.paths)
        _say_least_certain(say, held_out, answers)
        _say_comparison(say, held_out, answers, "gRPC")
        _say_comparison(say, held_out, _asked(server.urls.http, "http", held_out.paths), "HTTP")
        say.print(f"lines of {server.urls.metrics} that grew:", soft_wrap=True)
        # The voter counts within a second.
        time.sleep(1)
        for sample, old, new in grown(before, metrics_at(server.urls.metrics), *WATCHED):
            say.print(f"  {sample} {old:g} -> {new:g}", highlight=False, soft_wrap=True, markup=False)
    _say_places(say, run, repository, report, time.monotonic() - start)


def write_held_out(run: Run, images: LabelledImages) -> list[Path]:
    """Write the run's test images as files, `RUN/held_out/CLASS/INDEX.png`, and return them in the run's order."""
    table, classes, folder = run.table(), run.data().classes, run.path / "held_out"
    rows = table.rows("test")
    names = [Path(classes[table.labels[row]], f"{row:05d}.png") for row in rows]
    if not folder.is_dir():
        with whole_folder(folder) as hidden:
            for row, name in zip(rows, names, strict=True):
                (hidden / name).parent.mkdir(exist_ok=True)
                (hidden / name).write_bytes(images.encoded(int(row)))
    return [folder / name for name in names]


def pytorch_verdict(run: Run, ensemble: Ensemble) -> Verdict:
    """Return what PyTorch itself and the same vote say about the run's test images."""
    pixels = torch.from_numpy(np.array(run.pixels()[run.table().rows("test")]))
    logits = []
    for member in ensemble.members:
        model = model_from_checkpoint(member, run.checkpoint(member))
        with torch.inference_mode():
            logits.append(torch.cat([model(normalised(batch, member.image)) for batch in pixels.split(64)]).numpy())
    return decide(softmax(np.stack(logits, axis=1)), ensemble.rule)


def compared(answers: list[Prediction], held_out: HeldOut) -> Comparison:
    """Compare served answers with PyTorch's verdict on the same images.

    Raises:
        ParityError: another label, or a probability that differs by more than `TOLERANCE`.
    """
    served = np.array([[answer.probabilities[name] for name in held_out.classes] for answer in answers])
    difference = float(np.abs(served - held_out.verdict.probabilities).max())
    given = np.array([held_out.classes.index(answer.label) for answer in answers])
    flips = int(np.count_nonzero(given != held_out.verdict.label))
    if flips or not difference <= TOLERANCE:
        raise ParityError(
            f"the server answers otherwise than PyTorch: {flips} other labels of {len(answers)}, probabilities differ "
            f"by up to {difference:.2g}, at most {TOLERANCE:g} is allowed"
        )
    return Comparison(float(np.mean(given == held_out.labels)), difference)


def grown(before: dict[str, float], after: dict[str, float], *names: str) -> list[tuple[str, float, float]]:
    """Return (sample, before, after) of the samples of `names` that grew."""
    return [
        (sample, before.get(sample, 0.0), value)
        for sample, value in after.items()
        if sample.split("{")[0] in names and value > before.get(sample, 0.0)
    ]


def _held_out(run: Run, ensemble: Ensemble) -> HeldOut:
    table = run.table()
    paths = write_held_out(run, load_data(DATA, SETTINGS.seed))
    return HeldOut(paths, table.labels[table.rows("test")], pytorch_verdict(run, ensemble), ensemble.classes)


def _asked(url: str, protocol: Literal["grpc", "http"], paths: list[Path]) -> list[Prediction]:
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


def _say_least_certain(say: Console, held_out: HeldOut, answers: list[Prediction]) -> None:
    table = Table("held-out image", "served", "PyTorch", "entropy", "disagreement", "review")
    for index in np.argsort([answer.confidence for answer in answers])[:_SHOWN]:
        answer, path, winner = answers[index], held_out.paths[index], held_out.verdict.label[index]
        table.add_row(
            f"{path.parent.name}/{path.name}",
            f"{answer.label} {answer.confidence:.5f}",
            f"{held_out.classes[winner]} {held_out.verdict.probabilities[index, winner]:.5f}",
            f"{answer.entropy:.3f}",
            f"{answer.disagreement:.3f}",
            "a person" if answer.review else "",
        )
    say.print(f"the {_SHOWN} least certain answers beside PyTorch's own:")
    say.print(table)


def _say_comparison(say: Console, held_out: HeldOut, answers: list[Prediction], protocol: str) -> None:
    comparison = compared(answers, held_out)
    say.print(
        f"over {protocol}: {len(answers)} held-out images, accuracy of the served answers "
        f"{comparison.accuracy:.4f}; labels equal PyTorch's, probabilities within {comparison.max_difference:.1e}; "
        f"{sum(answer.review for answer in answers)} sent to a person",
        soft_wrap=True,
    )


def _say_places(say: Console, run: Run, repository: Path, report: Path, took_s: float) -> None:
    say.rule(f"done in {took_s:.0f} s")
    for what, place in (
        ("members", run.path / "members"),
        ("how they vote", run.ensemble_file),
        ("how good it is", report),
        ("held-out images", run.path / "held_out"),
        ("model repository", repository),
    ):
        say.print(f"{what + ':':18}{place}", soft_wrap=True, highlight=False)
    say.print(f"serve it: plurum serve {repository}", soft_wrap=True, highlight=False)
    say.print(f"ask it:   plurum predict {run.path / 'held_out'}", soft_wrap=True, highlight=False)
