"""The result of a growth measurement, as in growth.json and growth.csv."""

from __future__ import annotations

import statistics
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from plurum.benchmarks.peers.load import Turn
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["Axis", "GrowthPoint", "GrowthResult", "GrowthTurn", "csv_from_growth"]

Axis = Literal["members", "classes", "size", "clients"]
Count = Annotated[int, Field(ge=1)]


class GrowthPoint(Metadata):
    """A point on the four axes.

    Attributes:
        members: Number of members, all of one architecture.
        classes: Number of classes.
        size: Height and width of the images, pixels.
        clients: Requests in flight.
    """

    members: Count = 3
    classes: Count = 2
    size: Count = 64
    clients: Count = 8


class GrowthTurn(Turn):
    """One turn of one point.

    Attributes:
        axis: Axis on which the point was measured.
        point: Point on all four axes.
        busy_ms: Computing time of instances per image by part (`decoding`, `members`, `voter`), ms.
    """

    axis: Axis
    point: GrowthPoint
    busy_ms: dict[str, float]


class GrowthResult(Metadata):
    """Result of one run.

    Attributes:
        arch: Architecture of all members.
        turns: All turns.
        rounds: Turns of every point.
        seconds: Length of a turn.
        machine: Machine of the measurement.
        versions: Package versions of the measurement.
    """

    arch: str
    turns: tuple[GrowthTurn, ...]
    rounds: int
    seconds: float
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    def axes(self) -> list[Axis]:
        """Return the axes that were measured."""
        return list(dict.fromkeys(turn.axis for turn in self.turns))

    def values(self, axis: Axis) -> list[int]:
        """Return the values that were measured on an axis, in ascending order."""
        return sorted({getattr(turn.point, axis) for turn in self.turns if turn.axis == axis})

    def rate(self, axis: Axis, value: int) -> float:
        """Return the median of images per second over the turns of one point."""
        return statistics.median(turn.images_per_s for turn in self.turns_of(axis, value))

    def busy_ms(self, axis: Axis, value: int, part: str) -> float:
        """Return the median over the turns of one point of a part's computing time per image, ms."""
        return statistics.median(turn.busy_ms[part] for turn in self.turns_of(axis, value))

    def turns_of(self, axis: Axis, value: int) -> list[GrowthTurn]:
        """Return the turns of one point."""
        return [turn for turn in self.turns if turn.axis == axis and getattr(turn.point, axis) == value]

    def p50_ms(self, axis: Axis, value: int) -> float:
        """Return the median latency over the requests of all turns of one point, ms."""
        return float(np.median([one for turn in self.turns_of(axis, value) for one in turn.latencies_ms]))


def csv_from_growth(result: GrowthResult) -> str:
    """Return a table with a row for each turn."""
    parts = list(result.turns[0].busy_ms)
    rows = []
    for turn in result.turns:
        figures = [turn.images_per_s, *np.percentile(turn.latencies_ms, [50, 99]), *turn.busy_ms.values()]
        rows.append([turn.axis, *turn.point.model_dump().values(), *(f"{figure:.4f}" for figure in figures)])
    point = list(GrowthPoint.model_fields)
    head = ["axis", *point, "images_per_s", "p50_ms", "p99_ms", *(f"{part}_busy_ms" for part in parts)]
    return csv_from_rows([head, *rows])
