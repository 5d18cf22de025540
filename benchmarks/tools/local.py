"""The members called in this process, without a server: the reference for served throughput and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.spec import INPUT_PIXELS, LOGITS
from plurum.telemetry import import_onnxruntime

__all__ = ["LocalMembers", "Runner", "onnx_runner", "rate_in_threads"]

ort = import_onnxruntime()

Pixels = npt.NDArray[np.uint8]
# Computes one member's logits of uint8 `[batch, height, width, 3]`.
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


class LocalMembers:
    """Members that run one after the other in the calling thread.

    Args:
        runners: One function per member.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = runners

    def predict(self, pixels: Pixels) -> None:
        """Run every member on uint8 `[batch, height, width, 3]`."""
        for run in self._runners:
            run(pixels)

    def rate(self, pixels: Pixels, seconds: float) -> float:
        """Return images per second of a plain loop over at least `seconds`, after one uncounted prediction."""
        self.predict(pixels)
        images, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            self.predict(pixels)
            images += len(pixels)
        return images / elapsed


def rate_in_threads(members: Sequence[LocalMembers], pixels: Pixels, seconds: float) -> float:
    """Return images per second of plain loops that run at once, one thread for each of `members`."""
    with ThreadPoolExecutor(len(members)) as pool:
        return sum(pool.map(LocalMembers.rate, members, repeat(pixels), repeat(seconds)))
