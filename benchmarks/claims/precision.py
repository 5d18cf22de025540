"""Compare a repository in the precisions that `auto` chooses with the same in FP32: images per second, and accuracy.

    python -m plurum.benchmarks.claims.precision

Train members on scikit-learn's digits, enlarged (once; the run is kept), export them in FP32 and with
`--precision auto`, and serve both. Measured, in one run: images per second through `ensemble_pixels` of each, with 8
clients that send one image per request over gRPC, in turns whose order changes, medians over rounds; and the accuracy
of the served predictions on the 1,000 test images, which neither training, fit, calibration nor the gate has seen. Not
measured: decoding of images, a network, first requests, a busy machine (the report states the load average).
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.trained import served_accuracy, trained_run
from plurum.benchmarks.tools.turns import measure

__all__ = ["precision"]

_ARCHS = ["resnet18", "resnet10t"]
_CLIENTS = 8
_MODEL = "ensemble_pixels"


def precision(
    work: Annotated[Path, typer.Option(help="Folder that keeps data, members and repositories.")] = Path(
        "runs/precision"
    ),
    arch: command.Architectures = _ARCHS,
    size: command.ImageSize = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member.")] = 15,
    rounds: command.Rounds = 5,
    seconds: command.Seconds = 4.0,
) -> None:
    """Measure what coarser precisions gain and cost: a table on standard error, a line of JSON on standard output."""
    from plurum.export import ExportSettings, repository_from_run

    run = trained_run(work, arch, size, epochs)
    reasons: dict[str, dict[str, str]] = {}
    with command.measurement("exporting") as (say, state), ExitStack() as servers:
        urls = {}
        for name in ("fp32", "auto"):
            out = work / f"repository_{name}"
            exported = repository_from_run(run, out, ExportSettings.model_validate({"precision": name}), say)
            reasons[name] = {one.model: f"{one.precision}: {one.reason}" for one in exported.artefacts}
            urls[name] = servers.enter_context(server_of(out)).urls.grpc
        say("accuracy")
        accuracies = {name: served_accuracy(url, run) for name, url in urls.items()}
        rows = run.table().rows("test")
        pixels = np.array(run.pixels()[rows[:1]])
        cases = {name: partial(pixel_rate, url, _MODEL, pixels, _CLIENTS) for name, url in urls.items()}
        rates = measure(cases, rounds, seconds, say)
    ratio = statistics.median(rates["auto"]) / statistics.median(rates["fp32"])
    figures = {"ratio": round(ratio, 4), "images_per_s": rates, "accuracy": accuracies, "test_images": len(rows)}
    listed = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    command.print_report(
        {**figures, "artefacts": reasons, "size": size},
        state,
        command.table_of_rounds(rates, "images/s"),
        f"accuracy on {len(rows)} test images: {listed}",
        *(f"{model}: {reason}" for model, reason in reasons["auto"].items()),
        f"auto serves [bold]{ratio:.2f}[/bold] times as many images per second as fp32",
    )


if __name__ == "__main__":
    command.run_as_program(precision)
