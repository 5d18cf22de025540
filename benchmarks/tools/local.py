"""The members called in this process, with nothing around them: what a served answer is compared with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.spec import INPUT_PIXELS, LOGITS
from plurum.telemetry import import_onnxruntime

__all__ = ["LocalMembers"]

ort = import_onnxruntime()


class LocalMembers:
    """One session per member, each with `threads` threads.

    They don't spin while they wait, as in the server: with ONNX Runtime's default each member's threads would take
    the cores from the next member's, and the plain loop would be half as fast.
    """

    def __init__(self, graphs: Sequence[Path], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: list[Any] = [
            ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]) for graph in graphs
        ]

    def answer(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Run every member, one after the other, on uint8 `[batch, height, width, 3]`."""
        for session in self._sessions:
            session.run([LOGITS], {INPUT_PIXELS: pixels})

    def loop(self, pixels: npt.NDArray[np.uint8], seconds: float) -> float:
        """Return images per second of a plain loop over at least `seconds`, after one uncounted answer."""
        self.answer(pixels)
        images, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            self.answer(pixels)
            images += len(pixels)
        return images / elapsed

    def loops(self, count: int, pixels: npt.NDArray[np.uint8], seconds: float) -> float:
        """Return images per second of `count` such loops at once, in threads that share the sessions."""
        with ThreadPoolExecutor(count) as pool:
            return sum(pool.map(lambda _: self.loop(pixels, seconds), range(count)))
