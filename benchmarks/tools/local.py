"""The members called in this process, without a server: the reference for served throughput and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.onnx_graphs.telemetry import import_onnxruntime
from plurum.spec import INPUT_PIXELS, LOGITS

__all__ = ["Runner", "onnx_runner", "rate_in_threads", "rate_of", "run_in_turn"]

ort = import_onnxruntime()

Pixels = npt.NDArray[np.uint8]
# Predicts uint8 `[batch, height, width, 3]`.
Runner = Callable[[Pixels], object]


def onnx_runner(graph: Path, threads: int) -> Runner:
    """Return a function that runs a graph in ONNX Runtime with `threads` threads, as the server's backend does.

    Threads do not spin while they wait: with ONNX Runtime's default, each member's threads would take the cores from
    the next member's, and a plain loop would be half as fast.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([LOGITS], {INPUT_PIXELS: pixels})


def run_in_turn(runners: Sequence[Runner]) -> Runner:
    """Return a function that runs every member, one after the other, in the calling thread."""
    return lambda pixels: [run(pixels) for run in runners]


def rate_of(predict: Runner, pixels: Pixels, seconds: float) -> float:
    """Return images per second of a plain loop over at least `seconds`, after one uncounted prediction."""
    predict(pixels)
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        predict(pixels)
        images += len(pixels)
    return images / elapsed


def rate_in_threads(predict: Sequence[Runner], pixels: Pixels, seconds: float) -> float:
    """Return images per second of plain loops that run at once, one thread for each of `predict`."""
    with ThreadPoolExecutor(len(predict)) as pool:
        return sum(pool.map(rate_of, predict, repeat(pixels), repeat(seconds)))
