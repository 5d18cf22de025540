"""Measure the speed of architectures on this machine's processor, in PyTorch, ONNX FP32 and ONNX INT8.

All cases get a warm-up that does not count, then turns in an order that changes, so that other work on the machine
affects all of them; figures are medians over turns. Latency is that of one image on one thread, as `plurum serve` runs
members; throughput that of batches, one at a time on every core. Several threads on one batch would be slower: they
wait for each other after every layer, much longer if another program uses one of the cores. Decoding and resizing do
not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.benchmarks.compare.comparison import RUNTIMES, Runtime, Speed, Spread
from plurum.benchmarks.compare.contenders import Contender, model_from_contender
from plurum.benchmarks.compare.costs import graph_of
from plurum.benchmarks.tools.local import Runner, onnx_runner, rate_in_threads
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import usable_cores

__all__ = ["graph_logits", "latency_turn", "speeds_of"]

Pixels = npt.NDArray[np.uint8]


def speeds_of(
    contenders: Sequence[Contender],
    folders: Mapping[str, Path],
    pixels: Pixels,
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> dict[str, dict[Runtime, Speed]]:
    """Return latency and throughput by contender and runtime.

    Args:
        contenders: Contenders to measure.
        folders: Folders with their graphs, by name.
        pixels: One batch, uint8 `[batch, height, width, 3]`.
        rounds: Number of turns of each case.
        seconds: Length of a turn.
        progress: Receives one line before every turn.
    """
    image, cores = np.ascontiguousarray(pixels[:1]), usable_cores()
    cases: dict[str, Case] = {}
    for one in contenders:
        for runtime in RUNTIMES:
            graph = graph_of(folders[one.name], runtime)
            predict = _eager(one) if runtime == "pytorch" else onnx_runner(graph, 1)
            cases[f"{one.name} {runtime} latency"] = partial(latency_turn, predict, image)
            cases[f"{one.name} {runtime} throughput"] = partial(rate_in_threads, [predict] * cores, pixels)
    figures = measure(cases, rounds, seconds, progress)
    return {
        one.name: {
            runtime: Speed(
                latency_ms=_spread([1000 / rate for rate in figures[f"{one.name} {runtime} latency"]]),
                images_per_s=_spread(figures[f"{one.name} {runtime} throughput"]),
            )
            for runtime in RUNTIMES
        }
        for one in contenders
    }


def latency_turn(predict: Runner, image: Pixels, seconds: float) -> float:
    """Return one over the median time of a prediction in a turn of at least `seconds`; the first does not count."""
    predict(image)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        predict(image)
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def graph_logits(path: Path, pixels: Pixels, rows: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.float64]:
    """Return the logits of the ONNX file for these rows of `pixels`, `[rows, classes]`."""
    from plurum.export.graphs.runtimes import onnx_session
    from plurum.spec import INPUT_PIXELS, LOGITS

    session = onnx_session(path)
    batches = (np.array(pixels[rows[start : start + batch_size]]) for start in range(0, len(rows), batch_size))
    logits = [session.run([LOGITS], {INPUT_PIXELS: batch})[0] for batch in batches]
    return np.concatenate(logits, dtype=np.float64)


def _eager(contender: Contender) -> Runner:
    """Return a function that predicts pixels in PyTorch, on the calling thread alone."""
    import torch

    # ONNX graphs take the number of threads when they are loaded.
    torch.set_num_threads(1)
    model = model_from_contender(contender)

    def predict(pixels: Pixels) -> object:
        # A setting of the calling thread; there is one thread per core.
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            return model(torch.from_numpy(pixels))

    return predict


def _spread(values: list[float]) -> Spread:
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))
