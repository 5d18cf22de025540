"""A client for tests of slides that predicts from the colour of the tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.client import Answer, Failure, Prediction, Served
from plurum.client.connection.requests import pairs

__all__ = ["PURPLE", "Painter", "answer_of"]

PURPLE = (90, 40, 130)


class Painter:
    """Client that predicts `CE` for purple tiles and `LAA` for other tissue; it must never get glass."""

    def __init__(
        self,
        failing: Iterable[int] = (),
        size: tuple[int, int, int] | None = (64, 64, 3),
        drawn: Iterable[str] | None = None,
    ) -> None:
        self.served = Served(("CE", "LAA"), ("one",), 8, size, patient_rule="majority")
        self.seen: list[npt.NDArray[np.uint8]] = []
        self.failing = set(failing)
        # Patients whose images are drawn for audit; None draws none. And the patients that came with the images.
        self.drawn = drawn
        self.patients: list[str] = []

    def stream(self, images: Iterable[Any], *, patients: Any = None, batch_size: int | None = None) -> Iterator[Answer]:
        self.batch_size = batch_size
        for index, (image, patient) in enumerate(pairs(images, patients)):
            self.patients.append(patient)
            pixels = np.asarray(image)
            self.seen.append(pixels)
            if index in self.failing:
                yield Failure(index, f"image {index}", "no good")
                continue
            purple = float((np.abs(pixels[..., :3].astype(int) - PURPLE).sum(axis=-1) < 30).mean())
            audit = None if self.drawn is None else patient in self.drawn
            yield replace(answer_of(0.1 + 0.8 * purple), audit=audit)


def answer_of(ce: float) -> Prediction:
    both = {"CE": ce, "LAA": 1 - ce}
    entropy = -sum(p * math.log(p) for p in both.values())
    label = max(both, key=lambda name: both[name])
    std = dict.fromkeys(both, 0.0)
    return Prediction(
        label, max(both.values()), both, entropy, 0.02, std, {"one": both}, (label,), max(ce, 1 - ce) < 0.8
    )
