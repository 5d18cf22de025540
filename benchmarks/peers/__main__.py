"""Compare Plurum with other serving frameworks.

    python -m plurum.benchmarks.peers --out runs/peers

Measured, on one machine in one run: images per second and latencies of the same members (random weights, FP32) with the
same JPEGs, through Flask with PyTorch, FastAPI with ONNX Runtime, LitServe, BentoML, Mosec, Ray Serve and Plurum, each
by the same load generator, with 8 requests in flight and 1. First, the predictions of all are compared with PyTorch's.
Every framework starts once and takes turns in an order that changes, while the others are paused and use no core.
With --starts 3, everything is started three times.

With --trained, members are trained on scikit-learn's digits instead, and all test images are sent in turn. Plurum
serves them in the precisions that its tuning has chosen, its peers in FP32, and the result states the accuracy of both
on the test images. With --cascade, a cascade is fitted, too; peers run all members for each image.

    python -m plurum.benchmarks.peers --trained --cascade --served int8 --starts 3
    python -m plurum.benchmarks.peers --trained --cascade --served int8 --fashion /usr/share/datasets/fashion-mnist

Not measured: a network, first requests, requests that arrive at random moments, several machines, GPUs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from plurum.benchmarks.peers.catalogue import PEERS
from plurum.benchmarks.peers.material import material_of
from plurum.benchmarks.peers.measurement import TOLERANCE, PeersPlan, measure_peers
from plurum.benchmarks.peers.plot import plot_from_result
from plurum.benchmarks.peers.result import PeersResult, csv_from_result, markdown_from_result
from plurum.benchmarks.peers.trained import Served, accuracy_of, trained_material
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.errors import SettingsError
from plurum.export.settings import BUDGETS
from plurum.files import atomic_file, write_text

_FILES = ("peers.json", "peers.csv", "peers.md", "peers.png")
_CLIENTS = [8, 1]
_QUICK_S = 2.0
_PICTURE = "Images per second and 99th percentile with most clients, median with one, a bar for each framework"


def peers(  # noqa: PLR0913, PLR0917 - one parameter per option
    out: Annotated[Path, typer.Option(help="Folder for results, written atomically.")] = Path("runs/peers"),
    work: Annotated[Path, typer.Option(help="Folder that keeps graphs, weights and JPEGs for the next run.")] = Path(
        "runs/peers-work"
    ),
    repository: Annotated[
        Path | None,
        typer.Option(help="Repository to serve, as plurum tune wrote it from WORK/model_repository.", metavar="REPO"),
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only this peer; repeat for more.", show_default="all")] = None,
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    clients: Annotated[list[int], typer.Option(min=1, help="Requests in flight; repeat for more.")] = _CLIENTS,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every framework at each number of clients.")] = 3,
    starts: Annotated[int, typer.Option(min=1, help="How often everything is started anew.")] = 1,
    seconds: command.Seconds = 5.0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest difference between a probability of Plurum and of PyTorch.",
            show_default="0.001; with --trained what export's gate allows, 0.2; with --cascade none",
        ),
    ] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="Train members on digits, and serve them as --served says.")
    ] = False,
    served: Annotated[
        Served | None,
        typer.Option(
            help="With --trained: how Plurum serves: as plurum tune --run chooses, or as plurum export --precision "
            "writes.",
            show_default="tuned",
        ),
    ] = None,
    cascade: Annotated[bool, typer.Option("--cascade", help="With --trained: fit a cascade.")] = False,
    fashion: Annotated[
        Path | None,
        typer.Option(help="With --cascade: folder with the files of Fashion-MNIST, instead of digits.", exists=True),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Rough first table: one turn of 2 seconds at the first number of clients; with --trained, a single "
            "epoch, in FP32.",
        ),
    ] = False,
    page: Page = None,
) -> None:
    """Measure all frameworks: a table on standard output; peers.json, peers.csv, peers.md and peers.png in a folder."""
    known = {one.name: one for one in PEERS}
    if unknown := [name for name in peer or () if name not in known]:
        raise SettingsError(f"--peer: expected one of {', '.join(known)}, got {unknown[0]!r}.")
    for option, given, other, needed in (
        ("--served", served is not None, "--trained", trained),
        ("--cascade", cascade, "--trained", trained),
        ("--fashion", fashion is not None, "--cascade", cascade),
    ):
        if given and not needed:
            raise SettingsError(f"{option}: expected {other} with it, got none. Add it.")
    if quick:
        clients, rounds, seconds = clients[:1], 1, min(seconds, _QUICK_S)
    if trained:
        served = served or ("fp32" if quick else "tuned")
        folder = "fashion" if fashion else "cascade" if cascade else "trained"
        name = f"{folder}-{served}"
    else:
        name = "untuned" if repository is None else "tuned"
    command.check_results_folder(out, _FILES)
    if page is not None:
        page_with_tables(page, {name: ""})
    with command.show_status("members") as say:
        if served is not None:
            material, run = trained_material(
                work / f"{folder}{'-quick' if quick else ''}",
                arch,
                size,
                say,
                repository=repository,
                served=served,
                cascade=cascade,
                fashion=fashion,
                quick=quick,
            )
            say("accuracy")
            accuracy = accuracy_of(material, run)
        else:
            material, accuracy = material_of(work, arch, size, repository, say), None
        if tolerance is None:
            tolerance = 1.0 if cascade else BUDGETS["int8"].max_difference if trained else TOLERANCE
        chosen = tuple(known[name] for name in peer or known)
        measured = measure_peers(PeersPlan(chosen, tuple(clients), rounds, seconds, tolerance, starts), material, say)
    _write(measured.model_copy(update={"accuracy": accuracy}), out, page, name)


def _write(result: PeersResult, out: Path, page: Path | None, name: str) -> None:
    """Write the result into a folder and, between the marks `name`, into a page; print its table."""
    table = markdown_from_result(result)
    texts = (result.model_dump_json(indent=1) + "\n", csv_from_result(result), table)
    command.write_results(out, dict(zip(_FILES, (*texts, plot_from_result(result)), strict=True)))
    if page is not None:
        picture = page.parent / "images" / page.stem / f"{name}.png"
        shown = f"\n![{_PICTURE}]({picture.relative_to(page.parent)})\n\n{table}"
        write_text(page, page_with_tables(page, {name: shown}))
        with atomic_file(picture) as hidden:
            shutil.copyfile(out / "peers.png", hidden)
    typer.echo(table)
    typer.echo(f"result: {out}")


if __name__ == "__main__":
    command.run_as_program(peers)
