"""Compare architectures on the same images and splits: scores and costs.

Measured here: test scores with bootstrap intervals over patients, sizes, operations, memory in a process of its own,
latency and throughput in three runtimes, all votes of 2 and more. Not measured: a GPU, serving, decoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.benchmarks.compare.comparison import (
    RUNTIMES,
    ComparedArchitecture,
    Comparison,
    Runtime,
    Vote,
    pareto_front,
    points_of,
)
from plurum.benchmarks.compare.contenders import (
    Contender,
    check_checkpoints,
    contenders_from_checkpoints,
    contenders_from_run,
    model_from_contender,
)
from plurum.benchmarks.compare.costs import costs_of, graph_of, versions
from plurum.benchmarks.compare.speed import graph_logits, speeds_of
from plurum.benchmarks.compare.votes import metrics_of, subsets_of, votes_of
from plurum.benchmarks.tools.machine import machine
from plurum.errors import DataError, MetadataError, SettingsError
from plurum.files import check_folder
from plurum.predictions.arrays import Floats
from plurum.run import Run, Split, number_patients
from plurum.settings.benchmarks import COMPARED_EPOCHS, CompareSettings
from plurum.training import FitSettings, TrainOptions, TrainSettings, settings_from, train_run
from plurum.training.fitting.votes import ValidationPredictions
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.metrics import LabelledPredictions
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax

__all__ = ["compare_architectures", "contenders_of"]

# More votes would take too long.
_MOST_VOTES = 1000
# Intervals from fewer patients or images are rough.
_FEW = 30


def contenders_of(
    data: str, archs: Sequence[str], checkpoints: Sequence[str], out: Path, seed: int, training: dict[str, Any]
) -> tuple[Run, tuple[Contender, ...]]:
    """Return the contenders, and the run whose images they are compared on; train what is not trained yet.

    Args:
        data: Run, which is only read, or images as `plurum train` takes them; the run is then `out/run`.
        archs: Architectures that timm knows, or of a run also names of members; if empty, all members of the run.
        checkpoints: Checkpoints, as `contenders_from_checkpoints` takes them.
        out: Folder of the comparison.
        seed: Seed of training.
        training: Other fields of `TrainSettings` that differ from their defaults.

    Raises:
        SettingsError: No architecture is given, or options of training for a run that is only read.
        PlurumError: Training or reading fails.
    """
    check_folder(out, "the comparison")
    check_checkpoints(checkpoints)
    if Run(Path(data)).settings_file.is_file():
        if training:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in training)
            raise SettingsError(f"{data} is a run, of which nothing is trained again; leave out {named}")
        run = Run(Path(data))
        found = contenders_from_run(run, archs)
    else:
        if not archs:
            raise SettingsError(f"no architecture to train on {data}; name at least one with --arch")
        run = Run(out / "run")
        settings = settings_from(
            TrainSettings, archs=tuple(dict.fromkeys(archs)), seed=seed, **{"epochs": COMPARED_EPOCHS, **training}
        )
        train_run(data, settings, run.path, TrainOptions())
        found = contenders_from_run(run, archs, "trained")
    return run, _named_apart((*found, *contenders_from_checkpoints(run, checkpoints)))


def compare_architectures(
    run: Run, contenders: Sequence[Contender], work: Path, settings: CompareSettings, progress: Callable[[str], None]
) -> Comparison:
    """Return the comparison of contenders as `contenders_of` returns them.

    Args:
        run: Run with the images.
        contenders: Contenders to compare.
        work: Folder that keeps graphs and costs for the next time.
        settings: Settings of the comparison.
        progress: Receives one line about each step.

    Raises:
        MetadataError: A checkpoint is missing or broken, or predicts NaN.
        DataError: A split has no image.
        SettingsError: The contenders make too many ensembles.
        MissingExtraError: A package of training or export is not installed.
    """
    _check_number(contenders, settings)
    folders = {one.name: work / one.name for one in contenders}
    costs = {one.name: costs_of(one, run, folders[one.name], settings.batch_size, progress) for one in contenders}
    validation, _ = _predict_split(run, "validation", contenders, {}, settings, progress)
    test, by_runtime = _predict_split(run, "test", contenders, folders, settings, progress)
    state = machine()
    with _threads_kept():
        # One batch of test images, repeated if there are fewer.
        pixels = np.array(run.pixels()[np.resize(run.table().rows("test"), settings.batch_size)])
        speeds = speeds_of(contenders, folders, pixels, settings.rounds, settings.seconds, progress)
    bootstrap = Bootstrap(test.groups, settings.draws, settings.seed)
    compared = tuple(
        ComparedArchitecture(
            name=one.name,
            arch=one.arch,
            format=one.format,
            origin=one.origin,
            epochs=one.epochs,
            training_s=one.training_s,
            **_scores({"pytorch": test.predictions[:, index], **by_runtime[one.name]}, test.labels, bootstrap),
            costs=costs[one.name],
            speed=speeds[one.name],
        )
        for index, one in enumerate(contenders)
    )
    votes = votes_of(
        [one.name for one in compared],
        [one.speed["onnx_fp32"].latency_ms.median for one in compared],
        validation,
        test,
        settings.max_members,
        FitSettings(select="all", draws=settings.draws, seed=settings.seed),
        lambda _, name: progress(f"vote: {name}"),
    )
    return _comparison(run, settings, compared, votes, state)


def _comparison(
    run: Run,
    settings: CompareSettings,
    compared: tuple[ComparedArchitecture, ...],
    votes: tuple[Vote, ...],
    state: dict[str, str | int | float],
) -> Comparison:
    data, table = run.data(), run.table()
    patients = {table.patients[row] for row in table.rows("test")} - {""}
    return Comparison(
        data=data.source,
        fingerprint=data.fingerprint,
        classes=len(data.classes),
        **data.image.model_dump(include={"height", "width"}),
        images={split: len(table.rows(split)) for split in ("train", "validation", "test")},
        patients=len(patients),
        drawn="patients" if patients else "images",
        **settings.model_dump(include={"draws", "seed", "batch_size"}),
        turns=settings.rounds,
        compared=compared,
        votes=votes,
        front=pareto_front(points_of(compared, votes)),
        machine=state,
        versions=versions(),
        notes=tuple(_notes(compared, votes, state, len(patients) or len(table.rows("test")))),
    )


def _check_number(contenders: Sequence[Contender], settings: CompareSettings) -> None:
    number = len(subsets_of(len(contenders), settings.max_members))
    if number > _MOST_VOTES:
        raise SettingsError(
            f"{len(contenders)} architectures make {number:,} ensembles of up to {settings.max_members}; lower "
            f"--max-members, so that at most {_MOST_VOTES:,} are looked at"
        )


def _named_apart(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Return contenders with -2, -3, … after repeated names."""
    seen: Counter[str] = Counter()
    apart = []
    for one in contenders:
        seen[one.name] += 1
        apart.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name}-{seen[one.name]}"))
    return tuple(apart)


def _predict_split(
    run: Run,
    split: Split,
    contenders: Sequence[Contender],
    folders: dict[str, Path],
    settings: CompareSettings,
    progress: Callable[[str], None],
) -> tuple[ValidationPredictions, dict[str, dict[Runtime, Floats]]]:
    """Return PyTorch's predictions of a split by all contenders, and by name those of the graphs in `folders`, if any.

    Predictions of graphs are `[images, classes]`.
    """
    table, pixels = run.table(), run.pixels()
    rows = table.rows(split)
    if not len(rows):
        raise DataError(f"{run.path} has no {split} images; compare on data that has some")
    predictions: list[Floats] = []
    by_runtime: dict[str, dict[Runtime, Floats]] = {one.name: {} for one in contenders}
    for one in contenders:
        progress(f"{one.name}: {len(rows):,} {split} images")
        logits = predict_logits(model_from_contender(one).model, pixels, rows, one.image)
        predictions.append(_probabilities(one, logits))
        for runtime in RUNTIMES:
            if runtime != "pytorch" and one.name in folders:
                logits = graph_logits(graph_of(folders[one.name], runtime), pixels, rows, settings.batch_size)
                by_runtime[one.name][runtime] = _probabilities(one, logits)
    groups = number_patients([table.patients[row] for row in rows])
    known = ValidationPredictions(np.stack(predictions, axis=1), table.labels[rows], groups, run.data().classes)
    return known, by_runtime


def _probabilities(contender: Contender, logits: Floats) -> Floats:
    if not np.isfinite(probabilities := softmax(logits)).all():
        raise MetadataError(f"{contender.name} predicts NaN; train it again, or leave it out")
    return probabilities


def _scores(by_runtime: dict[Runtime, Floats], labels: npt.NDArray[np.int64], bootstrap: Bootstrap) -> dict[str, Any]:
    metrics = {
        runtime: metrics_of(LabelledPredictions(found, found.argmax(axis=1), labels), bootstrap)
        for runtime, found in by_runtime.items()
    }
    accuracy = {runtime: figures["accuracy"] for runtime, figures in metrics.items()}
    return {"metrics": metrics["pytorch"], "accuracy": accuracy}


@contextmanager
def _threads_kept() -> Any:
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _notes(
    compared: Sequence[ComparedArchitecture], votes: Sequence[Vote], state: dict[str, str | int | float], drawn: int
) -> list[str]:
    notes = []
    if others := [one.name for one in compared if one.origin == "checkpoint" or one.epochs is None]:
        notes.append(
            f"{', '.join(others)}: trained elsewhere; its figures flatter it if it has seen any of these test images."
        )
    if graphs := [one.name for one in compared if one.format == "onnx"]:
        notes.append(
            f"{', '.join(graphs)}: an ONNX graph, without PyTorch weights. The figures under PyTorch are those of the "
            f"added graph in ONNX Runtime."
        )
    if drawn < _FEW:
        notes.append(f"Only {drawn} patients or images are drawn from: intervals from so few are rough.")
    if len(votes) > 1:
        notes.append(
            f"{len(votes)} ensembles are looked at and no interval is widened for that: about one in forty that gains "
            f"nothing looks worth its cost by chance."
        )
    # The steps before keep up to all cores busy by themselves.
    if float(state["load_1min"]) > float(state["cores"]):
        notes.append(
            f"The machine was busy before speed was measured (load average {state['load_1min']} on {state['cores']} "
            f"cores): compare speeds with each other, and not with those of another run."
        )
    return notes
