"""Measure what a cascade costs when it saves little: the same members served with it and without.

    python -m plurum.benchmarks.claims.cascades.cost --library openvino --precision int8

Measured, in one run on one machine: images per second of `ensemble_fused` of two servers at once, which differ only in
the cascade. Its first stage is the first member. Twice as many clients as there are cores send requests over gRPC to
one server, then to the other:

- `all in doubt`: one image per request, and every image goes through all members. This is the worst case.
- `1 of 4 in doubt`: four images per request, of which one goes through all members.

Turns are short, and each turn of one server stands beside one of the other. The loss is the median over pairs, in
percent of the throughput without the cascade, with its upper 95 % limit (of order statistics); a negative loss is a
gain. Not measured: accuracy (weights are random), decoding, GPUs.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from plurum.benchmarks.claims.outliers.cost import loss, quantise
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import measure_pairs
from plurum.export.settings import Backend
from plurum.serving import usable_cores
from plurum.spec import CascadeCost, CascadeRule, EarlyStage, Ensemble, Voting, read_ensemble

__all__ = ["cost", "repository_with_stage"]

_ON, _OFF = "with", "without"
_BATCH, _ROWS = 16, 4
# By case, then by side, images per second for each turn.
_Rates = dict[str, dict[str, list[float]]]


def cost(
    work: command.WorkFolder = Path("runs/cascade_cost"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    library: Annotated[Literal["onnxruntime", "openvino"], typer.Option(help="Library that runs the graphs.")] = (
        "onnxruntime"
    ),
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Precision of the members.")] = "fp32",
    turns: Annotated[int, typer.Option(min=6, help="Number of turns of each server.")] = 40,
    seconds: command.Seconds = 2.0,
) -> None:
    """Measure the cost of the cascade: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        plain = random_repository(work, arch, size, _BATCH, say)
        rates = _rates(plain, work / f"{library}_{precision}", size, (library, precision), turns, seconds, say)
    losses = {case: loss(sides) for case, sides in rates.items()}
    about = {"members": arch, "size": size, "seconds": seconds, "library": library, "precision": precision}
    command.print_report({"percent": losses, "images_per_s": rates, **about}, state, _table(rates, losses))


def repository_with_stage(work: Path, archs: list[str], size: int, progress: command.Say) -> Path:
    """Write a repository of INT8 members on OpenVINO whose first one settles every image; return its folder.

    Arguments as in `random_repository`.
    """
    plain = random_repository(work, archs, size, _BATCH, progress)
    ensemble = read_ensemble(plain / "ensemble.json")
    graphs = {member.name: plain / member.name / "1" / "model.onnx" for member in ensemble.members}
    folder = work / "openvino_int8"
    graphs = quantise(graphs, folder, size, progress, "openvino")
    return _repository(_with_stage(ensemble, 0.0), graphs, folder / "settled", "openvino", progress)


def _rates(
    plain: Path, work: Path, size: int, how: tuple[Backend, str], turns: int, seconds: float, progress: command.Say
) -> _Rates:
    """Return the images per second of both servers in turns, by case."""
    ensemble = read_ensemble(plain / "ensemble.json")
    graphs = {member.name: plain / member.name / "1" / "model.onnx" for member in ensemble.members}
    if how[1] == "int8":
        graphs = quantise(graphs, work, size, progress, how[0])
    # Half bright, half dark, and so on: confidences differ.
    one = random_pixels(size, size)
    four = np.concatenate([one // divisor for divisor in range(1, _ROWS + 1)])
    cases = {"all in doubt": (one, 1.0), f"1 of {_ROWS} in doubt": (four, _between_two(graphs, ensemble, four))}
    rates: _Rates = {}
    for case, (pixels, leave) in cases.items():
        sides = {_ON: _with_stage(ensemble, leave), _OFF: ensemble}
        with (
            server_of(_repository(sides[_ON], graphs, work / f"{_ON}_{leave:.6f}", how[0], progress)) as on,
            server_of(_repository(sides[_OFF], graphs, work / _OFF, how[0], progress)) as off,
        ):
            urls = {_ON: on.urls.grpc, _OFF: off.urls.grpc}
            loads: Any = {
                side: partial(pixel_rate, url, "ensemble_fused", pixels, 2 * usable_cores())
                for side, url in urls.items()
            }
            progress(case)
            rates[case] = measure_pairs(loads, turns, seconds, progress)
    return rates


def _with_stage(ensemble: Ensemble, leave: float) -> Ensemble:
    """Return the ensemble with a cascade whose first stage is its first member.

    Args:
        ensemble: Ensemble of at least two members, whose vote is soft.
        leave: Confidence from which an image leaves, a 32-bit number; at 1 none leaves, because all need review.
    """
    members = len(ensemble.members)
    stage = EarlyStage(members=1, voting=Voting(weights=(1.0,)), leave=leave, share=0.0)
    rule = CascadeRule(
        order=tuple(range(members)),
        stages=(stage,),
        costs=(1 / members,) * members,
        cost=CascadeCost(value=1.0, low=1.0, high=1.0),
    )
    review = ensemble.review.model_copy(update={"threshold": float(leave == 1.0)})
    return ensemble.model_copy(update={"review": review}).with_cascade(rule)


def _between_two(graphs: dict[str, Path], ensemble: Ensemble, pixels: npt.NDArray[np.uint8]) -> float:
    """Return a confidence that the first member reaches for all images but one."""
    from plurum.export.graphs.runtimes import onnx_session
    from plurum.voting import softmax

    session = onnx_session(graphs[ensemble.members[0].name])
    confidence = softmax(session.run(["LOGITS"], {"PIXELS": pixels})[0]).max(axis=1)
    lowest, second, *_ = sorted(confidence.tolist())
    return float(np.float32((lowest + second) / 2))


def _repository(
    ensemble: Ensemble, graphs: dict[str, Path], folder: Path, library: Backend, progress: command.Say
) -> Path:
    """Write a repository whose fused graph, or stages, the library runs; return its folder."""
    from plurum.export import repository_from_onnx

    progress(f"repository {folder.name}")
    repository_from_onnx(ensemble, graphs, folder, _BATCH, backend=library)
    return folder


def _table(rates: _Rates, losses: dict[str, dict[str, float]]) -> Table:
    columns = ("", "with the cascade, images/s", "without", "loss, %", "upper 95 % limit")
    table = Table(*columns, title="medians over turns")
    for case, sides in rates.items():
        medians = (f"{statistics.median(sides[side]):.2f}" for side in (_ON, _OFF))
        table.add_row(case, *medians, f"{losses[case]['median']:+.2f}", f"{losses[case]['upper']:+.2f}")
    return table


if __name__ == "__main__":
    command.run_as_program(cost)
