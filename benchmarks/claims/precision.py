"""A repository in the precisions that `auto` chooses beside the same in FP32: images per second, and accuracy.

    python -m plurum.benchmarks.claims.precision

Trains members on scikit-learn's digits, enlarged (once; the run is kept), exports them in FP32 and with
`--precision auto`, and serves both. Measured, in one run: images per second through `ensemble_pixels` of each over
gRPC by 8 clients, one image a request, in turns whose order changes, medians over rounds; and the accuracy of the
served answers on the 1,000 test images, which neither training, fit, calibration nor the gate has seen. Not measured:
decoding of images, a network, first requests, a busy machine (the load average is printed).
"""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.accuracy import served_accuracy
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.trained import trained_run
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import Server, ServerSettings

__all__ = ["precision"]

_ARCHS = ("resnet18", "resnet10t")
_CLIENTS = 8
_MODEL = "ensemble_pixels"


def precision(
    work: Annotated[Path, typer.Option(help="Keeps data, members and repositories.")] = Path("runs/precision"),
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Of each member.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each gets.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 4.0,
) -> None:
    """Measure what coarser precisions gain and cost: a table on standard error, a line of JSON on standard output."""
    from plurum.export import ExportSettings, repository_from_run

    console = Console(stderr=True)
    run = trained_run(work, arch, size, epochs)
    reasons: dict[str, dict[str, str]] = {}
    with console.status("exporting") as status, ExitStack() as servers:
        urls = {}
        for name in ("fp32", "auto"):
            out = work / f"repository_{name}"
            settings = ExportSettings.model_validate({"precision": name})
            exported = repository_from_run(run, out, settings, status.update)
            reasons[name] = {one.model: f"{one.precision}: {one.reason}" for one in exported.artefacts}
            server = Server(out, ServerSettings(http_port=0, grpc_port=0, metrics_port=0))
            urls[name] = servers.enter_context(server).urls.grpc
        status.update("accuracy")
        accuracies = {name: served_accuracy(url, run) for name, url in urls.items()}
        state = machine()
        pixels = np.array(run.pixels()[run.table().rows("test")[:1]])
        cases: dict[str, Case] = {
            name: partial(pixel_rate, url, _MODEL, pixels, _CLIENTS) for name, url in urls.items()
        }
        rates = measure(cases, rounds, seconds, status.update)
    medians = {name: statistics.median(turns) for name, turns in rates.items()}
    ratio = medians["auto"] / medians["fp32"]
    images = len(run.table().rows("test"))
    table = Table("", "images/s", "lowest", "highest", f"accuracy on {images} test images")
    for name, turns in rates.items():
        rate = [f"{value:.2f}" for value in (medians[name], min(turns), max(turns))]
        table.add_row(name, *rate, f"{accuracies[name]:.4f}")
    console.print(table)
    for model, reason in reasons["auto"].items():
        console.print(f"{model}: {reason}", highlight=False)
    console.print(f"auto answers [bold]{ratio:.2f}[/bold] times as many images a second as fp32")
    result = {"ratio": round(ratio, 4), "images_per_s": rates, "accuracy": accuracies, "test_images": images}
    typer.echo(json.dumps({**result, "artefacts": reasons, "size": size, "machine": state, "versions": versions()}))


if __name__ == "__main__":
    typer.run(precision)
