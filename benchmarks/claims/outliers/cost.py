"""Measure the cost of the outlier test: the same members served with it and without.

    python -m plurum.benchmarks.claims.outliers.cost

Measured, in one run on one machine, in FP32 and in INT8: images per second of `ensemble_pixels` and of `ensemble_fused`
of two servers at once, which differ only in the detectors of the members, in the two outputs OUTLIER and REVIEW_REASON,
and in their metrics. Twice as many clients as there are cores send requests of one image over gRPC to one server, then
to the other. Detectors have the size that `plurum fit` gives them, and the reference has 1,000 images. ONNX Runtime
serves all graphs.

Turns are short, and each turn of one server stands beside one of the other. The loss is the median over pairs, in
percent of the throughput without the test, with its upper 95 % limit (of order statistics: a disturbed turn is one of
many). Not measured: accuracy (weights are random), OpenVINO, GPUs, the fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.members import random_model, random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import measure_pairs
from plurum.export.settings import Backend
from plurum.files import sha256_of
from plurum.serving import usable_cores
from plurum.spec import Ensemble, OutlierRule, read_ensemble

__all__ = ["cost", "loss", "quantise"]

_MODELS = ("ensemble_pixels", "ensemble_fused")
_ON, _OFF = "with", "without"
_PRECISIONS = ["fp32", "int8"]
_BATCH, _REFERENCE = 16, 1000
# Enough for the number of axes that a fit keeps.
_TRAINING, _CALIBRATION = 400, 32
# By side, images per second for each turn.
_Rates = dict[str, list[float]]


def cost(
    work: command.WorkFolder = Path("runs/outlier_cost"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    precision: Annotated[list[str], typer.Option(help="fp32 or int8; repeat for both.")] = _PRECISIONS,
    turns: Annotated[int, typer.Option(min=6, help="Number of turns of each server.")] = 40,
    seconds: command.Seconds = 2.0,
) -> None:
    """Measure the cost of the test: a table on standard error, one line of JSON on standard output."""
    rates: dict[str, _Rates] = {}
    with command.measurement("members") as (say, state):
        plain = random_repository(work, arch, size, _BATCH, say)
        for one in precision:
            sides = _repositories(plain, work / one, one, say)
            rates |= _measure(one, sides, size, turns, seconds, say)
    losses = {case: loss(sides) for case, sides in rates.items()}
    report = {"percent": losses, "images_per_s": rates, "members": arch, "size": size, "seconds": seconds}
    command.print_report(report, state, _table(rates, losses))


def loss(rates: _Rates) -> dict[str, float]:
    """Return by how many percent of the throughput without the test it is lower with it, with the upper 95 % limit."""
    from scipy.stats import quantile_test

    percents = [100 * (1 - on / off) for on, off in zip(rates[_ON], rates[_OFF], strict=True)]
    limit = quantile_test(percents, p=0.5, alternative="less").confidence_interval(0.95).high
    return {"median": round(statistics.median(percents), 3), "upper": round(float(limit), 3)}


def _repositories(plain: Path, work: Path, precision: str, progress: command.Say) -> dict[str, Path]:
    """Write the repositories with and without the test from the members of `plain`, and return their folders."""
    from plurum.export import repository_from_onnx

    ensemble = read_ensemble(plain / "ensemble.json")
    names = [member.name for member in ensemble.members]
    graphs = {_OFF: {name: plain / name / "1" / "model.onnx" for name in names}}
    graphs[_ON] = _graphs_with_detectors(ensemble, work.parent / "detectors", progress)
    if precision == "int8":
        graphs = {side: quantise(found, work / side, ensemble.image.height, progress) for side, found in graphs.items()}
    rule = _rule([sha256_of(graph) for graph in graphs[_ON].values()])
    ensembles = {_OFF: ensemble, _ON: ensemble.with_outliers(rule)}
    for side, found in graphs.items():
        progress(f"repository in {precision} {side} the test")
        repository_from_onnx(ensembles[side], found, work / f"repository_{side}", _BATCH, form="chain", fused=True)
    return {side: work / f"repository_{side}" for side in graphs}


def _rule(detectors: Sequence[str]) -> OutlierRule:
    members = len(detectors)
    rule = OutlierRule(
        alpha=0.01,
        members=(True,) * members,
        detectors=tuple(detectors),
        weights=(1 / members,) * members,
        reference=(0.0,),
        patients=1,
        split="validation",
    )
    return rule.with_reference(np.random.default_rng(0).normal(size=_REFERENCE), np.arange(_REFERENCE))


def _graphs_with_detectors(ensemble: Ensemble, folder: Path, progress: command.Say) -> dict[str, Path]:
    """Write the graphs of the members with detectors of random features, unless they exist."""
    import torch

    from plurum.detectors import FeatureModel
    from plurum.export import PixelModel, onnx_from_model
    from plurum.files import atomic_file
    from plurum.training.fitting.detection import fit_detector

    found = {}
    for member in ensemble.members:
        found[member.name] = folder / f"{member.arch}-{member.image.height}-{len(member.classes)}.onnx"
        if found[member.name].is_file():
            continue
        progress(f"{member.name}: to ONNX with a detector")
        model = FeatureModel(random_model(member.arch, len(member.classes))).eval()
        with torch.inference_mode():
            width = model(torch.zeros(1, 3, member.image.height, member.image.width))[1].shape[1]
        features = torch.randn(_TRAINING, width, generator=torch.Generator().manual_seed(0))
        detector = fit_detector(features, torch.arange(_TRAINING) % len(member.classes), features[:100])
        with atomic_file(found[member.name]) as hidden:
            onnx_from_model(PixelModel(model, member.image, detector), hidden)
    return found


def quantise(
    graphs: dict[str, Path], folder: Path, size: int, progress: command.Say, backend: Backend = "onnxruntime"
) -> dict[str, Path]:
    """Write the INT8 forms of graphs for a backend to `folder`, unless they exist, and return their paths by name.

    Args:
        graphs: FP32 graphs by name.
        folder: Existing folder, or one to create.
        size: Height and width of the images, pixels.
        progress: Receives one line about each step.
        backend: Backend that will run the graphs.
    """
    from plurum.export import int8_from_onnx
    from plurum.files import atomic_file

    found = {}
    for name, graph in graphs.items():
        found[name] = folder / f"{name}.onnx"
        if not found[name].is_file():
            progress(f"{name}: to INT8")
            with atomic_file(found[name]) as hidden:
                int8_from_onnx(graph, random_pixels(size, size, _CALIBRATION), hidden, backend)
    return found


def _measure(
    precision: str, repositories: dict[str, Path], size: int, turns: int, seconds: float, progress: command.Say
) -> dict[str, _Rates]:
    """Return the images per second of both servers in turns, for each model."""
    clients, pixels = 2 * usable_cores(), random_pixels(size, size)
    with server_of(repositories[_ON]) as one, server_of(repositories[_OFF]) as other:
        urls = {_ON: one.urls.grpc, _OFF: other.urls.grpc}
        found: dict[str, _Rates] = {}
        for model in _MODELS:
            case = f"{model}, {precision}"
            cases = {side: partial(pixel_rate, url, model, pixels, clients) for side, url in urls.items()}
            progress(case)
            found[case] = measure_pairs(cases, turns, seconds, progress)
    return found


def _table(rates: dict[str, _Rates], losses: dict[str, dict[str, float]]) -> Table:
    columns = ("", "with the test, images/s", "without", "loss, %", "upper 95 % limit")
    table = Table(*columns, title="medians over turns")
    for case, sides in rates.items():
        medians = (f"{statistics.median(sides[side]):.2f}" for side in (_ON, _OFF))
        one: dict[str, Any] = losses[case]
        table.add_row(case, *medians, f"{one['median']:+.2f}", f"{one['upper']:+.2f}")
    return table


if __name__ == "__main__":
    command.run_as_program(cost)
