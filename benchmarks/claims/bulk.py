"""Compare `plurum predict` with perf_analyzer: ten thousand images from a folder, on the same server.

    python -m plurum.benchmarks.claims.bulk runs/demo/model_repository --rounds 7

A watched server (`plurum serve`, a process of its own) receives the same JPEG files in turns. perf_analyzer sends them
over gRPC for some seconds, with the batch size and the number of requests in flight that gave it the most images per
second. In the middle of those seconds `plurum predict FOLDER --out FILE`, a process of its own, predicts all of them.
Its time counts from the start of its process to its end: starting Python, listing the folder, reading, requests, and
writing the file. Beside it stands the same without the start of the process (the time of `--help`), which
perf_analyzer's windows leave out too.

Then come faults: Triton is killed in the middle of a run, the server is ended and started again at its ports in the
middle of another, and the client is killed in the middle of a third and started again. Counted are images that the file
lacks or has twice. Not measured: a disk that is slower than the page cache; a server on another machine.
"""

from __future__ import annotations

import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.table import Table

from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer, find_perf_analyzer, set_up_perf_analyzer
from plurum.benchmarks.bench.result import BenchLoad, Target
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.requests import input_data, jpeg_from_pixels
from plurum.benchmarks.tools.servers import PlurumProcess, triton_of
from plurum.client import EnsembleClient, image_files
from plurum.errors import ServerError, needs_extra
from plurum.spec import IMAGE, read_ensemble

__all__ = ["bulk", "count_lost", "write_digits"]

# Batch size, and requests in flight.
_Way = tuple[int, int]
_TARGET = Target(model="ensemble", protocol="grpc")
_BATCHES, _IN_FLIGHT = [1, 8, 16, 32], [2, 4, 8]
_SEARCH_S, _RUN_S = 2.0, 3600.0


def bulk(
    repository: Annotated[Path, typer.Argument(help="Exported repository to serve, of small members.")],
    images: Annotated[int, typer.Option(min=100, help="Number of JPEG files in the folder.")] = 10_000,
    rounds: command.Rounds = 7,
    seconds: Annotated[float, typer.Option(min=0.3, help="Length of perf_analyzer's part of a round, seconds.")] = 8.0,
    batch_size: Annotated[list[int], typer.Option(help="Batch size to try with perf_analyzer.")] = _BATCHES,
    in_flight: Annotated[list[int], typer.Option(help="Requests in flight to try with perf_analyzer.")] = _IN_FLIGHT,
    faults: Annotated[bool, typer.Option(help="Also kill and restart server and client.")] = True,
) -> None:
    """Predict a folder of images: a table on standard error, one line of JSON on standard output."""
    analyzer = find_perf_analyzer() or set_up_perf_analyzer()
    with (
        command.measurement("images") as (say, state),
        tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place,
        PlurumProcess("serve", repository) as server,
    ):
        folder, data = Path(place, "scans"), Path(place, "requests.json")
        image = read_ensemble(repository / "ensemble.json").image
        write_digits(folder, images, image.height)
        encoded = [path.read_bytes() for path in image_files([folder])]
        data.write_text(input_data(encoded, image, IMAGE), encoding="utf-8")
        rate = partial(_rate, analyzer, server.urls["grpc"], data)
        best = _find_best(rate, server, batch_size, in_flight, say)
        turns = [_turn(partial(rate, best, seconds / 2), server, folder, say) for _ in range(rounds)]
        broken = [_run_with_fault(name, server, folder, say) for name in _FAULTS] if faults else []
    report = {
        "perf_analyzer": {"batch_size": best[0], "in_flight": best[1], "version": analyzer.version},
        "images": images,
        "turns": turns,
        "faults": broken,
    } | _medians(turns)
    command.print_report(report, state, _table(report))


def write_digits(folder: Path, count: int, size: int) -> None:
    """Write `count` JPEG files, `size` pixels high and wide, no two alike: scikit-learn's digits, moved, with noise."""
    with needs_extra("training", "sklearn"):
        from sklearn.datasets import load_digits
    digits, draws = load_digits().images * 255 / 16, np.random.default_rng(0)
    for number in range(count):
        below = folder / f"{number // 1000:02}"
        below.mkdir(parents=True, exist_ok=True)
        large = np.asarray(Image.fromarray(digits[number % len(digits)].astype(np.uint8)).resize((size, size)))
        moved = np.roll(large, draws.integers(-2, 3, 2), (0, 1)) + draws.normal(0, 8, (size, size))
        (below / f"{number:05}.jpg").write_bytes(jpeg_from_pixels(np.clip(moved, 0, 255).astype(np.uint8)))


def _rate(analyzer: PerfAnalyzer, url: str, data: Path, how: _Way, seconds: float) -> float:
    """Return perf_analyzer's images per second."""
    load = BenchLoad(kind="concurrency", value=how[1])
    return analyzer.measure(_TARGET, url, load, data, seconds, batch_size=how[0])["images_per_s"]


def _find_best(
    rate: Callable[[_Way, float], float],
    server: PlurumProcess,
    batches: list[int],
    in_flight: list[int],
    say: command.Say,
) -> _Way:
    """Return the way with the most images per second, after a warm-up."""
    with EnsembleClient(server.urls["grpc"]) as client:
        most = client.served.max_batch_size
    cases = list(product(sorted({min(one, most) for one in batches}), in_flight))
    rates = dict.fromkeys(cases, 0.0)
    rate(cases[-1], _SEARCH_S)
    for case in 2 * cases:
        say(f"perf_analyzer: batches of {case[0]}, {case[1]} in flight")
        rates[case] += rate(case, _SEARCH_S)
    return max(cases, key=rates.__getitem__)


def _turn(rate: Callable[[], float], server: PlurumProcess, folder: Path, say: command.Say) -> dict[str, float]:
    """Measure both sides once, `plurum predict` between the halves of perf_analyzer, each of which `rate` measures."""
    count = len(image_files([folder]))
    say("perf_analyzer")
    rates = [rate()]
    say("plurum predict")
    with tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place:
        out = Path(place, "answers.csv")
        took_s, cpu_s = _time_command(_command(server, folder, out))
        if (counts := count_lost(folder, out)) != (0, 0):
            raise ServerError(f"{out} lacks {counts[0]} images and has {counts[1]} twice")
    start_s, _ = _time_command([sys.executable, "-m", "plurum", "predict", "--help"])
    say("perf_analyzer")
    rates.append(rate())
    return {
        "perf_analyzer": statistics.mean(rates),
        "predict": count / took_s,
        "predict_started": count / (took_s - start_s),
        "predict_cpu_us": 1e6 * cpu_s / count,
    }


def _command(server: PlurumProcess, folder: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "plurum", "predict", str(folder), "--url", server.urls["grpc"], "--out", str(out)]


def _time_command(words: list[str]) -> tuple[float, float]:
    """Return the seconds that a command took, and the processor time that it used, seconds."""
    before, start_s = os.times(), time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_RUN_S)
    took_s, after = time.perf_counter() - start_s, os.times()
    if done.returncode:
        raise ServerError(f"plurum predict ended with {done.returncode}: {done.stderr[-500:]}")
    return took_s, after.children_user + after.children_system - before.children_user - before.children_system


def count_lost(folder: Path, out: Path) -> tuple[int, int]:
    """Return how many images of `folder` the file `out` lacks, and how many of its rows repeat an image."""
    with out.open(newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file) if not row["error"]]
    return len({str(path) for path in image_files([folder])} - set(paths)), len(paths) - len(set(paths))


_FAULTS: dict[str, Callable[[PlurumProcess, Any], None]] = {
    "Triton killed": lambda server, _: os.kill(triton_of(server).session, signal.SIGKILL),
    "server ended and started again": lambda server, _: server.restart(),
    "client killed and started again": lambda _, client: client.kill(),
}


def _run_with_fault(name: str, server: PlurumProcess, folder: Path, say: command.Say) -> dict[str, str | int | float]:
    """Inject a fault when a third of a run is done, and count images that its file lacks or has twice."""
    say(name)
    count = len(image_files([folder]))
    with tempfile.TemporaryDirectory(prefix="plurum_bulk_") as place:
        out, start_s = Path(place, "answers.csv"), time.perf_counter()
        words = [*_command(server, folder, out), "--timeout", "120"]
        start = partial(subprocess.Popen[str], words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        client = start()
        at = _wait_for_images(out.with_name(f".{out.name}.partial"), count // 3)
        _FAULTS[name](server, client)
        text = client.communicate(timeout=_RUN_S)[1]
        if client.returncode == -signal.SIGKILL:
            client = start()
            text = client.communicate(timeout=_RUN_S)[1]
        if client.returncode:
            raise ServerError(f"{name}: plurum predict ended with {client.returncode}: {text[-500:]}")
        lost, repeated = count_lost(folder, out)
    took_s = time.perf_counter() - start_s
    return {"fault": name, "at": at, "lost": lost, "repeated": repeated, "took_s": round(took_s, 2)}


def _wait_for_images(journal: Path, images: int) -> int:
    """Wait until a journal holds at least `images` images; return how many it holds."""
    until = time.monotonic() + _RUN_S
    while time.monotonic() < until:
        held = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0
        if held >= images:
            return held
        time.sleep(0.02)
    raise ServerError(f"{journal} did not reach {images} images within {_RUN_S:g} s")


def _medians(turns: list[dict[str, float]]) -> dict[str, Any]:
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    ratios = {
        f"ratio_{name}": statistics.median(turn[name] / turn["perf_analyzer"] for turn in turns)
        for name in ("predict", "predict_started")
    }
    return {"medians": medians} | ratios


def _table(report: dict[str, Any]) -> Table:
    how, medians = report["perf_analyzer"], report["medians"]
    title = f"{report['images']:,} JPEG files, {len(report['turns'])} rounds"
    table = Table("images per second, medians", "", title=title)
    table.add_row(
        f"perf_analyzer, batches of {how['batch_size']}, {how['in_flight']} in flight",
        f"{medians['perf_analyzer']:.0f}",
    )
    for name, meaning in (("predict", "the whole command"), ("predict_started", "without the start of its process")):
        table.add_row(f"plurum predict, {meaning}", f"{medians[name]:.0f} ({report[f'ratio_{name}']:.3f})")
    table.add_row("its processor time per image, µs", f"{medians['predict_cpu_us']:.0f}")
    for one in report["faults"]:
        table.add_row(f"{one['fault']} after {one['at']:,} images", f"{one['lost']} lost, {one['repeated']} repeated")
    return table


if __name__ == "__main__":
    command.run_as_program(bulk)
