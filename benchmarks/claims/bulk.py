"""Ten thousand images from a folder: `plurum predict` against what perf_analyzer gets out of the same server.

    python -m plurum.benchmarks.claims.bulk runs/demo/model_repository --rounds 7

A watched server (`plurum serve`, a process of its own) is asked about the same JPEG files in turns: by perf_analyzer,
over gRPC, with the batch and the number of requests in flight that gave it the most of those that were tried, for some
seconds; and by `plurum predict FOLDER --out FILE`, a process of its own, over all of them, in the middle of those
seconds. Of the second the time counts from the start of its process to its end: starting Python, listing the folder,
reading, asking, and writing the file. Beside it stands the same without the start of the process (its `--help` is timed
for it), which perf_analyzer's windows leave out too. Afterwards Triton is killed in the middle of a run, the server is
ended and started again at its ports in the middle of another, and the client is killed in the middle of a third and
started again; counted are images that the file lacks or has twice. Not measured: a disk that is slower than the page
cache; a server on another machine.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer, find_perf_analyzer, set_up_perf_analyzer
from plurum.benchmarks.bench.result import Load, Target
from plurum.benchmarks.tools.command import run_as_program
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.served import Served
from plurum.client import image_files
from plurum.errors import ServerError, needs_extra
from plurum.spec import IMAGE, read_ensemble

__all__ = ["bulk", "counted", "write_images"]

_TARGET = Target(model="ensemble", protocol="grpc")
_BATCHES, _IN_FLIGHT = (1, 8, 16, 32), (2, 4, 8)
_SEARCH_S, _RUN_S = 2.0, 3600.0


def bulk(
    repository: Annotated[Path, typer.Argument(help="What is served: an exported repository of small members.")],
    images: Annotated[int, typer.Option(min=100, help="JPEG files in the folder.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of both sides in turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.3, help="Of perf_analyzer, each round.")] = 8.0,
    batch_size: Annotated[list[int], typer.Option(help="Tried with perf_analyzer.")] = list(_BATCHES),  # noqa: B006
    in_flight: Annotated[list[int], typer.Option(help="Likewise.")] = list(_IN_FLIGHT),  # noqa: B006
    faults: Annotated[bool, typer.Option(help="Kill and restart server and client, too.")] = True,
) -> None:
    """Ask about a folder of images: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    state = machine()
    analyzer = find_perf_analyzer() or set_up_perf_analyzer()
    with console.status("images") as status, tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place:
        folder, data = Path(place, "scans"), Path(place, "requests.json")
        write_images(folder, images, read_ensemble(repository / "ensemble.json").image.height)
        data.write_text(_requests(folder), encoding="utf-8")
        with Served(repository) as served:
            asked = _best(analyzer, served, data, batch_size, in_flight, status.update)
            turns = [_turn(analyzer, served, data, folder, asked, seconds, status.update) for _ in range(rounds)]
            broken = [_broken(name, served, folder, status.update) for name in _FAULTS] if faults else []
    report = {
        "perf_analyzer": {"batch_size": asked[0], "in_flight": asked[1], "version": analyzer.version},
        "images": images,
        "turns": turns,
        "faults": broken,
        "machine": state,
        "versions": versions(),
    } | _medians(turns)
    console.print(_table(report))
    sys.stdout.write(json.dumps(report) + "\n")


def write_images(folder: Path, count: int, size: int) -> None:
    """Write `count` JPEG files, `size` pixels high and wide, no two alike: scikit-learn's digits, moved, with noise."""
    with needs_extra("training", "sklearn"):
        from sklearn.datasets import load_digits
    digits, draws = load_digits().images * 255 / 16, np.random.default_rng(0)
    for number in range(count):
        below = folder / f"{number // 1000:02}"
        below.mkdir(parents=True, exist_ok=True)
        large = np.asarray(Image.fromarray(digits[number % len(digits)].astype(np.uint8)).resize((size, size)))
        moved = np.roll(large, draws.integers(-2, 3, 2), (0, 1)) + draws.normal(0, 8, (size, size))
        grey = Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8))
        grey.convert("RGB").save(below / f"{number:05}.jpg", quality=90)


def _requests(folder: Path) -> str:
    entries = []
    for path in image_files([folder]):
        image = path.read_bytes()
        # Raw data of Triton's BYTES: each element after its length, four bytes, the least first.
        raw = len(image).to_bytes(4, "little") + image
        entries.append({IMAGE: {"b64": base64.b64encode(raw).decode(), "shape": [1]}})
    return json.dumps({"data": entries})


def _asked(analyzer: PerfAnalyzer, served: Served, data: Path, asked: tuple[int, int], seconds: float) -> float:
    """Return perf_analyzer's images per second with a batch size and so many requests in flight."""
    load = Load(kind="concurrency", value=asked[1])
    figures = analyzer.measure(_TARGET, served.urls["grpc"], load, data, seconds, batch_size=asked[0])
    return figures["images_per_s"]


def _best(
    analyzer: PerfAnalyzer,
    served: Served,
    data: Path,
    batches: list[int],
    in_flight: list[int],
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Return the batch size and the requests in flight with which perf_analyzer gets most; the first is a warm-up."""
    most = served.max_batch_size()
    cases = [(batch, number) for batch in sorted({min(one, most) for one in batches}) for number in in_flight]
    rates: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    _asked(analyzer, served, data, cases[-1], _SEARCH_S)
    for _ in range(2):
        for case in cases:
            say(f"perf_analyzer: batches of {case[0]}, {case[1]} in flight")
            rates[case].append(_asked(analyzer, served, data, case, _SEARCH_S))
    return max(cases, key=lambda case: sum(rates[case]))


def _turn(
    analyzer: PerfAnalyzer,
    served: Served,
    data: Path,
    folder: Path,
    asked: tuple[int, int],
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Measure both sides once; the one that is measured between the halves of the other."""
    count = len(image_files([folder]))
    say("perf_analyzer")
    rates = [_asked(analyzer, served, data, asked, seconds / 2)]
    say("plurum predict")
    with tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place:
        took_s, cpu_s = _timed(_command(served, folder, Path(place, "answers.csv")))
        _check_whole(folder, Path(place, "answers.csv"))
    start_s, _ = _timed([sys.executable, "-m", "plurum", "predict", "--help"])
    say("perf_analyzer")
    rates.append(_asked(analyzer, served, data, asked, seconds / 2))
    return {
        "perf_analyzer": statistics.mean(rates),
        "predict": count / took_s,
        "predict_started": count / (took_s - start_s),
        "predict_cpu_us": 1e6 * cpu_s / count,
    }


def _command(served: Served, folder: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "plurum", "predict", str(folder), "--url", served.urls["grpc"], "--out", str(out)]


def _timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a command took, and those of the processor's time that it used."""
    before, begun_s = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_S)
    took_s, after = time.perf_counter() - begun_s, os.times()
    if done.returncode:
        raise ServerError(f"plurum predict ended with {done.returncode}: {done.stderr[-500:]}")
    return took_s, after.children_user + after.children_system - before.children_user - before.children_system


def counted(folder: Path, out: Path) -> tuple[int, int]:
    """Return how many images the file lacks, and how many rows are of one that it has already."""
    with out.open(newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file) if not row["error"]]
    return len({str(path) for path in image_files([folder])} - set(paths)), len(paths) - len(set(paths))


def _check_whole(folder: Path, out: Path) -> None:
    if counted(folder, out) != (0, 0):
        raise ServerError(f"{out} lacks images or has some twice: {counted(folder, out)}")


def _kill_triton(served: Served, _: subprocess.Popen[str]) -> None:
    os.kill(served.triton(), signal.SIGKILL)


def _restart_server(served: Served, _: subprocess.Popen[str]) -> None:
    served.restart()


def _kill_client(_: Served, client: subprocess.Popen[str]) -> None:
    client.kill()


_FAULTS: dict[str, Callable[[Served, Any], None]] = {
    "Triton killed": _kill_triton,
    "server ended and started again": _restart_server,
    "client killed and started again": _kill_client,
}


def _broken(name: str, served: Served, folder: Path, say: Callable[[str], None]) -> dict[str, str | int | float]:
    """Do something to a run when a third of it is done, and count what its file lacks or has twice."""
    say(name)
    count = len(image_files([folder]))
    with tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place:
        out, begun_s = Path(place, "answers.csv"), time.perf_counter()
        command = [*_command(served, folder, out), "--timeout", "120"]
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        at = _waited_for(out.with_name(f".{out.name}.partial"), count // 3)
        _FAULTS[name](served, client)
        said = client.communicate(timeout=_RUN_S)[1]
        if client.returncode == -signal.SIGKILL:
            client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            said = client.communicate(timeout=_RUN_S)[1]
        if client.returncode:
            raise ServerError(f"{name}: plurum predict ended with {client.returncode}: {said[-500:]}")
        lost, repeated = counted(folder, out)
    took_s = time.perf_counter() - begun_s
    return {"fault": name, "at": at, "lost": lost, "repeated": repeated, "took_s": round(took_s, 2)}


def _waited_for(journal: Path, images: int) -> int:
    """Return how many images a journal holds, once that is so many."""
    until = time.monotonic() + _RUN_S
    while time.monotonic() < until:
        held = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0
        if held >= images:
            return held
        time.sleep(0.02)
    raise ServerError(f"{journal} did not come to {images} images")


def _medians(turns: list[dict[str, float]]) -> dict[str, Any]:
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    ratios = {
        f"ratio_{name}": statistics.median(turn[name] / turn["perf_analyzer"] for turn in turns)
        for name in ("predict", "predict_started")
    }
    return {"medians": medians} | ratios


def _table(report: dict[str, Any]) -> Table:
    asked = report["perf_analyzer"]
    table = Table(
        "images per second, medians", "", title=f"{report['images']:,} JPEG files, {len(report['turns'])} rounds"
    )
    medians = report["medians"]
    table.add_row(
        f"perf_analyzer, batches of {asked['batch_size']}, {asked['in_flight']} in flight",
        f"{medians['perf_analyzer']:.0f}",
    )
    table.add_row("plurum predict, the whole command", f"{medians['predict']:.0f} ({report['ratio_predict']:.3f})")
    table.add_row(
        "plurum predict, its process started",
        f"{medians['predict_started']:.0f} ({report['ratio_predict_started']:.3f})",
    )
    table.add_row("its processor time, µs an image", f"{medians['predict_cpu_us']:.0f}")
    for one in report["faults"]:
        table.add_row(f"{one['fault']} after {one['at']:,} images", f"{one['lost']} lost, {one['repeated']} repeated")
    return table


if __name__ == "__main__":
    run_as_program(bulk)
