"""Compare a tuned repository with what the machine could do: served throughput over in-process throughput.

    python -m plurum.benchmarks.claims.tune_efficiency

Measured, on one machine in one run: images per second through `ensemble_pixels` and `ensemble` of a server as
`plurum serve` starts it, requested from this machine over gRPC and over HTTP, one image or four per request; and images
per second of the same graphs called by this process without a server: one image per core, and all cores on one image
after the other, in batches of 1 to 16, by each backend that can serve them. The ratio is the best median of the first
over the best median of the second, the ceiling. For `ensemble`, decoding counts in the ceiling as if it were spread
over all cores without loss.

Then, for `ensemble_pixels` with one image per request, over the best way: the latency of a single client; the 99th
percentile of the latency at half of the highest throughput, when requests come evenly and at random (Poisson), beside
the latter of a queue that loses nothing; and the processor time per image of Triton, of the processes of each model,
and of the client.

Without --tuned, a repository of random weights is made and tuned under --work, once. Every case gets a warm-up that
does not count, then a turn in every round, in an order that changes; figures are medians over rounds. Not measured: a
network, accuracy, first requests, a busy machine (the report states the load average).
"""

from __future__ import annotations

import heapq
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import Protocol, closed_loop, open_loop, requests_of
from plurum.benchmarks.tools.local import Runner, onnx_runner, rate_in_threads, run_in_turn
from plurum.benchmarks.tools.machine import processor_s
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import decode_pixels, synthetic_images
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import Case, measure
from plurum.benchmarks.tune.repository import Artefacts, read_artefacts
from plurum.benchmarks.tune.tuning import tune
from plurum.benchmarks.tune.variant import AS_IS, Backend
from plurum.export.graphs.runtimes import openvino_runner
from plurum.serving import Server, usable_cores
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import LOGITS, ImageSpec

__all__ = ["efficiency", "ideal_p99", "ratios", "tune_efficiency"]

_BATCHES = (1, 4, 16)
_PIXELS, _ENCODED, _LOCAL = "ensemble_pixels", "ensemble", "in-process"
# Images of a request that holds several, such as those of one patient.
_SEVERAL = 4
# Kinds of requests: the model, and how many images a request holds.
_KINDS = {
    **{model: (model, 1) for model in (_PIXELS, _ENCODED)},
    **{f"{model} by {_SEVERAL}": (model, _SEVERAL) for model in (_PIXELS, _ENCODED)},
}
_SPACED = {"even": "evenly", "random": "at random"}
_DECODED = 50
# Enough for a 99th percentile to three digits.
_QUEUED = 200_000
# Shorter times are left out.
_LEAST_MS = 0.02

Pixels = npt.NDArray[np.uint8]


class _Load(NamedTuple):
    """Prepared requests for one URL, and how many images each of them holds."""

    url: str
    requests: Sequence[bytes]
    images: int


def tune_efficiency(
    tuned: Annotated[Path | None, typer.Option(help="Folder that `plurum tune` wrote; by default one is made.")] = None,
    work: Annotated[Path, typer.Option(help="Folder that keeps graphs and the tuned repository.")] = Path(
        "runs/efficiency"
    ),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    rounds: command.Rounds = 3,
    seconds: command.Seconds = 4.0,
    spaced: Annotated[int, typer.Option(min=1, help="Number of requests at half of the highest throughput.")] = 200,
) -> None:
    """Measure both sides: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        repository = tuned or _tuned(work, arch, size, say)
        result = efficiency(read_artefacts(AS_IS, repository), rounds, seconds, spaced, say)
    lines = []
    for name in _KINDS:
        one = result[name]
        figures = f"{one['images_per_s']:.2f} of {one['ceiling']:.2f} images/s: [bold]{one['ratio']:.3f}[/bold]"
        lines.append(f"{name}: {figures} of {one['of']}")
    spent = ", ".join(f"{name} {each:.2f}" for name, each in result["processor_ms"].items())
    lines.append(f"processor time per image of {_PIXELS}, ms: {spent}")
    half = result["half_load"]
    p99 = [f"{half[f'{how}_p99_ms']:.0f} ms ({half[how]:.2f} times) {word}" for how, word in _SPACED.items()]
    lines.append(f"latency of one client {half['single_ms']:.0f} ms; at {half['rate']:.1f} images/s p99 is")
    lines.append(f"{', '.join(p99)} ({half['ideal']:.2f} times with nothing lost)")
    table = command.table_of_rounds(result["images_per_s"], "images/s")
    command.print_report({**result, "repository": str(repository)}, state, table, *lines)


def efficiency(artefacts: Artefacts, rounds: int, seconds: float, spaced: int, progress: command.Say) -> dict[str, Any]:
    """Return the figures of both sides, their ratios, and the latencies at half of the highest throughput."""
    cores, spec = usable_cores(), artefacts.ensemble.image
    encoded = synthetic_images(spec)[:8]
    pixels = decode_pixels(encoded[0], spec)[None]
    progress("starting the server")
    with server_of(artefacts.path) as server:
        urls: dict[Protocol, str] = {"gRPC": server.urls.grpc, "HTTP": server.urls.http}
        loads = {
            f"{kind}, {over}": _Load(url, requests_of(encoded, spec, model, over, each=each), each)
            for kind, (model, each) in _KINDS.items()
            for over, url in urls.items()
        }
        cases = _local_cases(artefacts, cores, pixels)
        for how, one in loads.items():
            for clients in (cores, 4 * cores, 8 * cores) if one.images == 1 else (2 * cores,):
                cases[f"{how}, {clients} clients"] = partial(_rate, one, clients)
        figures = measure(cases, rounds, seconds, progress)
        found = ratios(figures, decode_s=_decode_s(encoded, spec), cores=cores)
        best = loads[found[_PIXELS]["case"].rpartition(", ")[0]]
        progress("where the time goes")
        spent = _processor_ms(server, best, 8 * cores, rounds * seconds)
        progress("half of the load")
        half = _half_load(best, found[_PIXELS]["images_per_s"] / 2, seconds, spaced, cores)
    found |= {"half_load": half, "processor_ms": spent}
    return {**found, "rounds": rounds, "seconds": seconds, "images_per_s": figures}


def ratios(figures: dict[str, list[float]], decode_s: float, cores: int) -> dict[str, dict[str, Any]]:
    """Return for each kind of request its best median, the ceiling, the cases of both, and the ratio.

    Args:
        figures: Images per second of every case by turn.
        decode_s: Time that a core takes to decode an image, seconds.
        cores: Number of cores that share decoding in the ceiling of `ensemble`.
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


def _runner(graph: Path, backend: Backend, bf16: bool, threads: int) -> Runner:
    """Return a function that computes a graph as the served backend does, without Triton."""
    return (
        openvino_runner(graph, [LOGITS], threads, bf16=bf16) if backend == "openvino" else onnx_runner(graph, threads)
    )


def _local_cases(artefacts: Artefacts, cores: int, pixels: Pixels) -> dict[str, Case]:
    graphs = {artefacts.path / model / "1" / "model.onnx": artefacts.backends[model] for model in artefacts.members}
    bf16 = {graph: artefacts.rounds(graph.parents[1].name) for graph in graphs}
    by_backend: dict[str, dict[Path, Backend]] = {}
    backends: tuple[Backend, ...] = ("onnxruntime", "openvino")
    for backend in backends:
        taken = {graph: backend if backend in known else known[0] for graph, known in graphs.items()}
        by_backend.setdefault(" and ".join(dict.fromkeys(taken.values())), taken)
    cases: dict[str, Case] = {}
    for name, taken in by_backend.items():
        for lanes, threads in dict.fromkeys(((cores, 1), (1, cores))):
            how = "one image a core" if threads == 1 else f"{threads} threads on one image"
            members = [
                run_in_turn([_runner(graph, of, bf16[graph], threads) for graph, of in taken.items()])
                for _ in range(lanes)
            ]
            for batch in _BATCHES:
                several = np.repeat(pixels, batch, axis=0)
                cases[f"{_LOCAL}, {name}, {how}, batches of {batch}"] = partial(rate_in_threads, members, several)
    return cases


def _rate(load: _Load, clients: int, seconds: float) -> float:
    return load.images * closed_loop(load.url, load.requests, clients, seconds).images_per_s


def _processor_ms(server: Server, load: _Load, clients: int, seconds: float) -> dict[str, float]:
    """Return the processor time per image of Triton, of the processes of each model, and of the client, ms."""
    names = {process: server.stubs().get(process, "triton") for process in server.processes()}
    names[os.getpid()] = "client"
    before = {process: processor_s(process) for process in names}
    images = closed_loop(load.url, load.requests, clients, seconds).requests
    spent: dict[str, float] = {}
    for process, name in names.items():
        spent[name] = spent.get(name, 0.0) + 1000 * (processor_s(process) - before[process]) / images
    return {name: round(each, 3) for name, each in sorted(spent.items(), key=lambda one: -one[1]) if each >= _LEAST_MS}


def ideal_p99(load: float, servers: int) -> float:
    """Return the 99th percentile of latencies in a queue that loses nothing (M/D/c), over the service time.

    Args:
        load: Requests that arrive, at random moments, within the service time of one request.
        servers: Number of servers; each serves one request at a time, first come first served.
    """
    come, free, took = np.random.default_rng(0).exponential(1 / load, _QUEUED).cumsum(), [0.0] * servers, []
    for moment in come.tolist():
        done = max(moment, heapq.heappop(free)) + 1
        heapq.heappush(free, done)
        took.append(done - moment)
    return float(np.percentile(took, 99))


def _half_load(load: _Load, rate: float, seconds: float, count: int, cores: int) -> dict[str, float]:
    """Return latencies of a single client, and of `count` requests at `rate` a second, evenly and at random."""
    single = closed_loop(load.url, load.requests, 1, seconds).p50_ms
    even = open_loop(load.url, load.requests, [index / rate for index in range(count)]).p99_ms
    moments = np.random.default_rng(0).exponential(1 / rate, count).cumsum()
    spread = open_loop(load.url, load.requests, [float(moment) for moment in moments]).p99_ms
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
        decode_pixels(images[index % len(images)], spec)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _tuned(work: Path, archs: Sequence[str], size: int, progress: command.Say) -> Path:
    out = work / "tuned"
    if not (out / "tuning.json").is_file():
        repository = random_repository(work, archs, size, 16, progress)
        tune(repository, out, None, TuneSettings(), progress)
    return out


if __name__ == "__main__":
    command.run_as_program(tune_efficiency)
