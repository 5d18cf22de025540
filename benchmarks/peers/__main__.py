"""Plurum beside what people would use instead.

    python -m plurum.benchmarks.peers --out runs/peers

Measured, on one machine in one run: images per second and latencies of the same members (random weights, FP32), asked
about the same JPEGs, through Flask with PyTorch, FastAPI with ONNX Runtime, LitServe, BentoML, Mosec, Ray Serve and
Plurum, each by the same load generator, 8 requests in flight and 1. The answers of all are compared with PyTorch's
first. Everyone is started once and takes turns in an order that changes, while the others are paused and use no core.

With --trained members are trained on scikit-learn's digits instead, Plurum serves them in the precisions that its
tuning has chosen, its peers in FP32, and the accuracy of both on 1,000 test images is told.

Not measured: a network, first requests, requests that arrive at random moments, several machines, GPUs.
"""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plurum.benchmarks.peers.catalogue import PEERS
from plurum.benchmarks.peers.material import material_of
from plurum.benchmarks.peers.measurement import TOLERANCE, Plan, measure_peers
from plurum.benchmarks.peers.plot import plot_from_result
from plurum.benchmarks.peers.result import PeersResult, csv_from_result, markdown_from_result
from plurum.benchmarks.peers.trained import accuracy_of, trained_material
from plurum.benchmarks.tools.command import run_as_program
from plurum.errors import OutputError, SettingsError
from plurum.export.settings import BUDGETS
from plurum.files import atomic_file, atomic_folder, write_text

_ARCHS = ("resnet18", "efficientnet_b0", "densenet121")
_FILES = {"peers.json", "peers.csv", "peers.png", "peers.md"}
_PICTURE = "Images per second and 99th percentile with eight clients, median with one, a bar for each"
_BEGIN, _END = "<!-- peers: made by the command above -->", "<!-- peers: end -->"


def peers(  # noqa: PLR0913, PLR0917 - one parameter per option
    out: Annotated[Path, typer.Option(help="Folder for results, written whole or not at all.")] = Path("runs/peers"),
    work: Annotated[Path, typer.Option(help="Keeps graphs, weights and JPEGs for the next run.")] = Path(
        "runs/peers-work"
    ),
    repository: Annotated[
        Path | None,
        typer.Option(help="Serve this one, as plurum tune wrote it from WORK/model_repository.", metavar="REPO"),
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.", show_default="all")] = None,
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    clients: Annotated[list[int], typer.Option(min=1, help="Requests in flight; repeat for more.")] = [8, 1],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of everyone at each number of clients.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 5.0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How far Plurum's probabilities may be from PyTorch's.",
            show_default="0.001; with --trained what export's gate allows, 0.2",
        ),
    ] = None,
    trained: Annotated[
        bool,
        typer.Option("--trained", help="Train members on digits, and serve them as plurum tune --run chooses."),
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Put table and picture into this page, between its marks.")] = None,
) -> None:
    """Measure everyone; a table on standard output, peers.json, peers.csv, peers.md and peers.png in a folder."""
    known = {one.name: one for one in PEERS}
    if unknown := [name for name in peer or () if name not in known]:
        raise SettingsError(f"--peer {unknown[0]}: none of {', '.join(known)}")
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _FILES):
        raise OutputError(f"{out} holds something else than results of peers; name another folder with --out")
    if page is not None:
        page_with_table(page, "")
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Console(stderr=True).status("members") as status:
        if trained:
            material, run = trained_material(work / "trained", arch, size, repository, status.update)
            status.update("accuracy")
            accuracy = accuracy_of(material, run)
        else:
            material, accuracy = material_of(work, arch, size, repository, status.update), {}
        if tolerance is None:
            tolerance = BUDGETS["int8"].max_difference if trained else TOLERANCE
        wanted = tuple(known[name] for name in peer or known)
        measured = measure_peers(Plan(wanted, tuple(clients), rounds, seconds, tolerance), material, status.update)
        result = measured.model_copy(update={"accuracy": accuracy})
    table = markdown_from_result(result)
    _write(result, table, out)
    if page is not None:
        write_text(page, page_with_table(page, table))
        with atomic_file(_picture(page)) as hidden:
            shutil.copyfile(out / "peers.png", hidden)
    typer.echo(table)
    typer.echo(f"result: {out}")


def _write(result: PeersResult, table: str, out: Path) -> None:
    picture = plot_from_result(result)
    with atomic_folder(out) as folder:
        (folder / "peers.json").write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "peers.csv").write_text(csv_from_result(result), encoding="utf-8")
        (folder / "peers.md").write_text(table, encoding="utf-8")
        (folder / "peers.png").write_bytes(picture)


def page_with_table(page: Path, table: str) -> str:
    """Return the text of a page with the picture and the table between its marks.

    Raises:
        SettingsError: there is no such page, or it has no marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    marks = re.compile(f"(?<={re.escape(_BEGIN)}\n).*?(?={re.escape(_END)})", re.DOTALL)
    if not marks.search(text):
        raise SettingsError(f"--page {page}: no page with the marks {_BEGIN} and {_END}")
    picture = f"![{_PICTURE}]({_picture(page).relative_to(page.parent)})"
    return marks.sub(lambda _: f"\n{picture}\n\n{table}\n", text)


def _picture(page: Path) -> Path:
    return page.parent / "images" / page.stem / "peers.png"


if __name__ == "__main__":
    run_as_program(peers)
