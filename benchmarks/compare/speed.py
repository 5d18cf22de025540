"""How fast architectures answer on this machine's processor, in PyTorch, ONNX FP32 and ONNX INT8.

All cases get an uncounted warm-up, then turns in an order that changes, so that whatever else the machine does meets
all of them; figures are medians over turns. Latency is that of one image on one thread, as `plurum serve` runs members;
throughput that of batches, one at a time on every core. Several threads on one batch would be slower: they wait for
each other after every layer, much longer still where another program has one of the cores. Decoding and resizing are
not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.benchmarks.compare.comparison import RUNTIMES, Runtime, Speed, Spread
from plurum.benchmarks.compare.contenders import Contender, model_from_contender
from plurum.benchmarks.compare.costs import graph_of
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import usable_cores

__all__ = ["graph_logits", "latency_turn", "speeds_of", "throughput_turn"]

Pixels = npt.NDArray[np.uint8]
Answer = Callable[[Pixels], object]


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
        contenders: Who.
        folders: With their graphs, by name.
        pixels: One batch, uint8 `[batch, height, width, 3]`.
        rounds: Turns that each case gets.
        seconds: Length of a turn.
        progress: Is told of every turn.
    """
    image, cores = np.ascontiguousarray(pixels[:1]), usable_cores()
    cases: dict[str, Case] = {}
    for one in contenders:
        for runtime in RUNTIMES:
            answer = _answer(one, folders[one.name], runtime)
            cases[f"{one.name} {runtime} latency"] = partial(latency_turn, answer, image)
            cases[f"{one.name} {runtime} throughput"] = partial(throughput_turn, answer, pixels, cores)
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


def latency_turn(answer: Answer, image: Pixels, seconds: float) -> float:
    """Return one over the median time of an answer, in a turn of at least `seconds`; the first is not counted."""
    answer(image)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        answer(image)
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


def throughput_turn(answer: Answer, pixels: Pixels, cores: int, seconds: float) -> float:
    """Return images per second of so many loops at once, each over one batch for at least `seconds`.

    Each loop's first batch is not counted.
    """

    def loop(_: int) -> float:
        answer(pixels)
        images, began = 0, time.perf_counter()
        while not images or time.perf_counter() - began < seconds:
            answer(pixels)
            images += len(pixels)
        return images / (time.perf_counter() - began)

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(loop, range(cores)))


def graph_logits(path: Path, pixels: Pixels, rows: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.float64]:
    """Return what the ONNX file answers to these of `pixels`, logits `[rows, classes]`."""
    from plurum.export.graphs.runtimes import onnx_session
    from plurum.spec import INPUT_PIXELS, LOGITS

    session = onnx_session(path)
    batches = (np.array(pixels[rows[start : start + batch_size]]) for start in range(0, len(rows), batch_size))
    answers = [session.run([LOGITS], {INPUT_PIXELS: batch})[0] for batch in batches]
    return np.concatenate(answers, dtype=np.float64)


def _answer(contender: Contender, folder: Path, runtime: Runtime) -> Answer:
    """Return what answers pixels on the one thread that calls it."""
    if runtime == "pytorch":
        return _eager(contender)
    from plurum.export.graphs.runtimes import onnx_session
    from plurum.spec import INPUT_PIXELS, LOGITS

    session: Any = onnx_session(graph_of(folder, runtime), threads=1)
    return lambda pixels: session.run([LOGITS], {INPUT_PIXELS: pixels})


def _eager(contender: Contender) -> Answer:
    import torch

    model = model_from_contender(contender)

    def answer(pixels: Pixels) -> object:
        # A setting of the calling thread, of which there is one a core.
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            return model(torch.from_numpy(pixels))

    return answer


def _spread(values: list[float]) -> Spread:
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))
