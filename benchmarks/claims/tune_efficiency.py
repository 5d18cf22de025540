"""How much of what the machine can compute a tuned repository serves.

    python -m plurum.benchmarks.claims.tune_efficiency

Measured, on one machine in one run: images per second through `ensemble_pixels` and `ensemble` of a server that
`plurum serve` would start, asked over gRPC and over HTTP from this machine, in requests of one image and of four; and
images per second of the same graphs called by this process with nothing around them: one image a core, and all cores on
one image after the other, in batches of 1 to 16, by each backend that may serve them. The ratio is the best median of
the first over the best median of the second, the ceiling. For `ensemble` decoding is counted in the ceiling, as if it
were spread over all cores without loss. Then, for `ensemble_pixels`, an image a request, over what was best: how long a
single client waits, and what 99 % of the answers do not take longer than at half of the most images per second, when
requests come evenly and at random (Poisson), beside the latter of a queue that loses nothing; and for how long
processors are busy with an image: of Triton, of each model's processes, and of who asks.

Without --tuned a repository of random weights is made and tuned under --work, once. Every case gets an uncounted
warm-up, then a turn in every round, in an order that changes; figures are medians over rounds. Not measured: a network,
accuracy, first requests, a busy machine (the load average is printed).
"""

from __future__ import annotations

import heapq
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.load import Protocol, closed_loop, open_loop, requests_of
from plurum.benchmarks.tools.machine import machine, processor_s, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import decoded, synthetic_images
from plurum.benchmarks.tools.turns import Case, measure
from plurum.benchmarks.tune.repository import Artefacts, read_artefacts
from plurum.benchmarks.tune.search import served
from plurum.benchmarks.tune.tuning import tune
from plurum.benchmarks.tune.variant import AS_IS, Backend
from plurum.export.graphs.runtimes import openvino_runner
from plurum.serving import Server, usable_cores
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import INPUT_PIXELS, LOGITS, ImageSpec
from plurum.telemetry import import_onnxruntime

__all__ = ["Lanes", "efficiency", "ideal_p99", "ratios", "tune_efficiency"]

_ARCHS = ("resnet18", "efficientnet_b0", "densenet121")
_BATCHES = (1, 4, 16)
_PIXELS, _ENCODED, _LOCAL = "ensemble_pixels", "ensemble", "in-process"
# Images of a request that holds several, as of one patient.
_SEVERAL = 4
# What is asked: the model, and how many images a request holds.
_KINDS = {
    **{model: (model, 1) for model in (_PIXELS, _ENCODED)},
    **{f"{model} by {_SEVERAL}": (model, _SEVERAL) for model in (_PIXELS, _ENCODED)},
}
_SPACED = {"even": "evenly", "random": "at random"}
_DECODED = 50
# Enough for a 99th percentile to three digits.
_QUEUED = 200_000
# Less than that is not told.
_LEAST_MS = 0.02

Pixels = npt.NDArray[np.uint8]


class _Asked(NamedTuple):
    """Where, with which prepared requests, and how many images each of them holds."""

    url: str
    requests: Sequence[bytes]
    images: int


def tune_efficiency(
    tuned: Annotated[Path | None, typer.Option(help="What `plurum tune` wrote; else one is made.")] = None,
    work: Annotated[Path, typer.Option(help="Keeps graphs and the tuned repository.")] = Path("runs/efficiency"),
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every case gets.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 4.0,
    spaced: Annotated[int, typer.Option(min=1, help="Requests at half of the most images per second.")] = 200,
) -> None:
    """Measure both sides: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        repository = tuned or _tuned(work, arch, size, status.update)
        result = efficiency(read_artefacts(AS_IS, repository), rounds, seconds, spaced, status.update)
    table = Table("case", "images/s", "lowest", "highest", title="medians over rounds")
    for name, turns in result["images_per_s"].items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(turns), min(turns), max(turns))))
    console.print(table)
    for name in _KINDS:
        one = result[name]
        told = f"{name}: {one['images_per_s']:.2f} of {one['ceiling']:.2f} images/s: [bold]{one['ratio']:.3f}[/bold]"
        console.print(f"{told} of {one['of']}", highlight=False)
    spent = ", ".join(f"{name} {each:.2f}" for name, each in result["processor_ms"].items())
    console.print(f"processor time for an image of {_PIXELS}, ms: {spent}", highlight=False)
    half = result["half_load"]
    p99 = [
        f"{half[f'{how}_p99_ms']:.0f} ms when they come {word}, {half[how]:.2f} times" for how, word in _SPACED.items()
    ]
    told = f"one client waits {half['single_ms']:.0f} ms; at {half['rate']:.1f} images/s p99 is {', '.join(p99)}"
    console.print(f"{told} ({half['ideal']:.2f} with nothing lost)", highlight=False)
    typer.echo(json.dumps({**result, "repository": str(repository), "versions": versions()}))


def efficiency(
    artefacts: Artefacts, rounds: int, seconds: float, spaced: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the figures of both sides, their ratios, and what half of the most load takes."""
    cores, spec, state = usable_cores(), artefacts.ensemble.image, machine()
    encoded = synthetic_images(spec)[:8]
    pixels = decoded(encoded[0], spec)[None]
    progress("starting the server")
    with served(artefacts.path) as server:
        asked = {
            f"{kind}, {over}": _Asked(url, requests_of(encoded, spec, model, over, each=each), each)
            for kind, (model, each) in _KINDS.items()
            for over, url in _urls(server).items()
        }
        cases = _local_cases(artefacts, cores, pixels)
        for how, one in asked.items():
            for clients in (cores, 4 * cores, 8 * cores) if one.images == 1 else (2 * cores,):
                cases[f"{how}, {clients} clients"] = partial(_rate, one, clients)
        figures = measure(cases, rounds, seconds, progress)
        told = ratios(figures, decode_s=_decode_s(encoded, spec), cores=cores)
        best = asked[told[_PIXELS]["case"].rpartition(", ")[0]]
        progress("where the time goes")
        spent = _processor_ms(server, best, 8 * cores, rounds * seconds)
        progress("half of the load")
        half = _half_load(best, told[_PIXELS]["images_per_s"] / 2, seconds, spaced, cores)
    about = {"half_load": half, "processor_ms": spent}
    return {**told, **about, "rounds": rounds, "seconds": seconds, "images_per_s": figures, "machine": state}


def ratios(figures: dict[str, list[float]], decode_s: float, cores: int) -> dict[str, dict[str, Any]]:
    """Return by what is asked its best median, the ceiling, which case that is, and the ratio.

    Args:
        figures: Images per second of every case by turn.
        decode_s: How long a core decodes an image, seconds.
        cores: What decoding is spread over in the ceiling of `ensemble`.
    """
    medians = {name: statistics.median(turns) for name, turns in figures.items()}
    best = {
        kind: max((name for name in medians if name.startswith(f"{kind},")), key=medians.__getitem__)
        for kind in (*_KINDS, _LOCAL)
    }
    ceilings = {_PIXELS: medians[best[_LOCAL]], _ENCODED: 1 / (1 / medians[best[_LOCAL]] + decode_s / cores)}
    return {
        kind: {
            "ratio": round(medians[best[kind]] / ceilings[model], 4),
            "images_per_s": medians[best[kind]],
            "ceiling": ceilings[model],
            "case": best[kind],
            "of": best[_LOCAL],
        }
        for kind, (model, _) in _KINDS.items()
    }


class Lanes:
    """The members called in this process, by as many threads of ours at once as there are lanes.

    Args:
        graphs: One graph per member, with the backend that computes it.
        bf16: Those that OpenVINO computes in BF16.
        lanes: Images at once; each lane has everything of its own.
        threads: Of each graph in a lane.
    """

    def __init__(self, graphs: dict[Path, Backend], bf16: frozenset[Path], lanes: int, threads: int) -> None:
        self._lanes = [
            [_runner(graph, backend, graph in bf16, threads) for graph, backend in graphs.items()] for _ in range(lanes)
        ]

    def rate(self, pixels: Pixels, seconds: float) -> float:
        """Return images per second of all lanes together over at least `seconds`, after one uncounted answer each."""
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            return sum(pool.map(partial(_lane_rate, pixels=pixels, seconds=seconds), self._lanes))


def _lane_rate(runners: Sequence[Callable[[Pixels], object]], pixels: Pixels, seconds: float) -> float:
    def answer() -> None:
        for run in runners:
            run(pixels)

    answer()
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        answer()
        images += len(pixels)
    return images / elapsed


def _runner(graph: Path, backend: Backend, bf16: bool, threads: int) -> Callable[[Pixels], object]:
    """Return what the served backends do, without Triton."""
    if backend == "openvino":
        return openvino_runner(graph, [LOGITS], threads, bf16=bf16)
    onnxruntime = import_onnxruntime()

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), session_options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {INPUT_PIXELS: pixels})


def _local_cases(artefacts: Artefacts, cores: int, pixels: Pixels) -> dict[str, Case]:
    graphs = {artefacts.path / model / "1" / "model.onnx": artefacts.backends[model] for model in artefacts.members}
    bf16 = frozenset(graph for graph in graphs if artefacts.rounds(graph.parents[1].name))
    by_backend: dict[str, dict[Path, Backend]] = {}
    for wanted in ("onnxruntime", "openvino"):
        taken: dict[Path, Backend] = {
            graph: next((one for one in known if one == wanted), known[0]) for graph, known in graphs.items()
        }
        by_backend.setdefault(" and ".join(dict.fromkeys(taken.values())), taken)
    cases: dict[str, Case] = {}
    for name, taken in by_backend.items():
        for lanes, threads in dict.fromkeys(((cores, 1), (1, cores))):
            how = "one image a core" if threads == 1 else f"{threads} threads on one image"
            local = Lanes(taken, bf16, lanes, threads)
            for batch in _BATCHES:
                several = np.repeat(pixels, batch, axis=0)
                cases[f"{_LOCAL}, {name}, {how}, batches of {batch}"] = partial(local.rate, several)
    return cases


def _urls(server: Server) -> dict[Protocol, str]:
    return {"gRPC": server.urls.grpc, "HTTP": server.urls.http}


def _rate(asked: _Asked, clients: int, seconds: float) -> float:
    return asked.images * closed_loop(asked.url, asked.requests, clients, seconds).images_per_s


def _processor_ms(server: Server, asked: _Asked, clients: int, seconds: float) -> dict[str, float]:
    """Return for how long processors are busy with an image: of Triton, of each model's processes, and of who asks."""
    names = {process: server.stubs().get(process, "triton") for process in server.processes()}
    names[os.getpid()] = "client"
    before = {process: processor_s(process) for process in names}
    images = closed_loop(asked.url, asked.requests, clients, seconds).requests
    spent: dict[str, float] = {}
    for process, name in names.items():
        spent[name] = spent.get(name, 0.0) + 1000 * (processor_s(process) - before[process]) / images
    return {name: round(each, 3) for name, each in sorted(spent.items(), key=lambda one: -one[1]) if each >= _LEAST_MS}


def ideal_p99(load: float, servers: int) -> float:
    """Return the 99th percentile of latencies in a queue that loses nothing (M/D/c), over the time of one answer.

    Args:
        load: Requests that come, at random moments, in the time of one answer.
        servers: Answer a request each, all in the same time, first come first served.
    """
    come, free, took = np.random.default_rng(0).exponential(1 / load, _QUEUED).cumsum(), [0.0] * servers, []
    for moment in come.tolist():
        done = max(moment, heapq.heappop(free)) + 1
        heapq.heappush(free, done)
        took.append(done - moment)
    return float(np.percentile(took, 99))


def _half_load(asked: _Asked, rate: float, seconds: float, count: int, cores: int) -> dict[str, float]:
    """Return latencies of a single client, and of `count` requests at `rate` a second, evenly and at random."""
    single = closed_loop(asked.url, asked.requests, 1, seconds).p50_ms
    even = open_loop(asked.url, asked.requests, [index / rate for index in range(count)]).p99_ms
    moments = np.random.default_rng(0).exponential(1 / rate, count).cumsum()
    spread = open_loop(asked.url, asked.requests, [float(moment) for moment in moments]).p99_ms
    return {
        "rate": rate,
        "single_ms": single,
        "even_p99_ms": even,
        "random_p99_ms": spread,
        "even": round(even / single, 3),
        "random": round(spread / single, 3),
        "ideal": round(ideal_p99(rate * single / 1000, cores), 3),
    }


def _decode_s(images: Sequence[bytes], spec: ImageSpec) -> float:
    """Return the median time that a core takes to decode one of `images`, seconds."""
    times = []
    for index in range(_DECODED):
        start = time.perf_counter()
        decoded(images[index % len(images)], spec)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _tuned(work: Path, archs: Sequence[str], size: int, progress: Callable[[str], None]) -> Path:
    out = work / "tuned"
    if not (out / "tuning.json").is_file():
        repository = random_repository(work, archs, size, 16, progress, fused=True)
        tune(repository, out, None, TuneSettings(), progress)
    return out


if __name__ == "__main__":
    typer.run(tune_efficiency)
