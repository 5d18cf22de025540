"""What growth.json and growth.csv state."""

from __future__ import annotations

import statistics
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["Axis", "GrowthResult", "Point", "TurnOfGrowth", "csv_from_growth"]

Axis = Literal["members", "classes", "size", "clients"]
Count = Annotated[int, Field(ge=1)]


class Point(Metadata):
    """Where on the four axes something was measured.

    Attributes:
        members: How many, all of one architecture.
        classes: How many.
        size: Height and width, pixels.
        clients: Requests in flight.
    """

    members: Count = 3
    classes: Count = 2
    size: Count = 64
    clients: Count = 8


class TurnOfGrowth(Metadata):
    """One turn of one point.

    Attributes:
        axis: Along which the point was measured.
        point: Where.
        images_per_s: Answered.
        latencies_ms: Of every request, as its client saw it.
        busy_ms: By part (`decoding`, `members`, `voter`): how long instances computed, milliseconds per image.
    """

    axis: Axis
    point: Point
    images_per_s: Annotated[float, Field(gt=0)]
    latencies_ms: tuple[float, ...]
    busy_ms: dict[str, float]


class GrowthResult(Metadata):
    """All of one run.

    Attributes:
        arch: Of all members.
        turns: All of them.
        rounds: Turns of every point.
        seconds: Length of a turn.
        machine: What they were taken on.
        versions: Of what was measured.
    """

    arch: str
    turns: tuple[TurnOfGrowth, ...]
    rounds: int
    seconds: float
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    def axes(self) -> list[Axis]:
        """Return the axes that were measured."""
        return list(dict.fromkeys(turn.axis for turn in self.turns))

    def values(self, axis: Axis) -> list[int]:
        """Return what was measured along an axis, the least first."""
        return sorted({getattr(turn.point, axis) for turn in self.turns if turn.axis == axis})

    def rate(self, axis: Axis, value: int) -> float:
        """Return the median of images per second over the turns of one point."""
        return statistics.median(turn.images_per_s for turn in self.turns_of(axis, value))

    def busy_ms(self, axis: Axis, value: int, part: str) -> float:
        """Return the median of what a part computed per image over the turns of one point."""
        return statistics.median(turn.busy_ms[part] for turn in self.turns_of(axis, value))

    def turns_of(self, axis: Axis, value: int) -> list[TurnOfGrowth]:
        """Return the turns of one point."""
        return [turn for turn in self.turns if turn.axis == axis and getattr(turn.point, axis) == value]

    def p50_ms(self, axis: Axis, value: int) -> float:
        """Return the median latency over the requests of all turns of one point."""
        return float(np.median([one for turn in self.turns_of(axis, value) for one in turn.latencies_ms]))


def csv_from_growth(result: GrowthResult) -> str:
    """Return a table with a row for each turn."""
    parts = list(result.turns[0].busy_ms)
    point = list(Point.model_fields)
    rows = [["axis", *point, "images_per_s", "p50_ms", "p99_ms", *(f"{part}_busy_ms" for part in parts)]]
    for turn in result.turns:
        figures = [turn.images_per_s, *np.percentile(turn.latencies_ms, [50, 99]), *turn.busy_ms.values()]
        rows.append([turn.axis, *turn.point.model_dump().values(), *(f"{figure:.4f}" for figure in figures)])
    return csv_from_rows(rows)
