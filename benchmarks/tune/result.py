"""What a tuning was for, what it measured and what it chose, as `tuning.json` and `tuning.csv` state it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from plurum.benchmarks.tools.load import Point
from plurum.benchmarks.tune.variant import Variant
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["Final", "Gain", "Objective", "Side", "Trial", "TuneResult", "csv_from_result", "gain_of", "medians_of"]

Side = Literal["before", "after"]


class Objective(Metadata):
    """What is best: most images a second, of what keeps the latency.

    Attributes:
        model: Who is asked: `ensemble` takes encoded images, `ensemble_pixels` decoded ones.
        clients: Loads, in requests in flight; the best of them counts.
        latency_ms: What 99 % of the answers must not take longer than; None where only throughput counts.
    """

    model: Literal["ensemble", "ensemble_pixels"]
    clients: tuple[Annotated[int, Field(ge=1)], ...]
    latency_ms: Annotated[float, Field(gt=0)] | None = None

    def __str__(self) -> str:
        limit = "" if self.latency_ms is None else f" with p99 <= {self.latency_ms:g} ms"
        return f"most images/s of {self.model}{limit} at {' or '.join(map(str, self.clients))} in flight"

    def best(self, points: Sequence[Point]) -> Point:
        """Return the load that fits best: most images a second within the limit, else the one nearest to it."""
        counted = [one for one in points if one.clients in self.clients]
        within = [one for one in counted if self.latency_ms is None or one.p99_ms <= self.latency_ms]
        if within:
            return max(within, key=lambda one: one.images_per_s)
        return min(counted, key=lambda one: one.p99_ms)

    def merit(self, points: Sequence[Point]) -> float:
        """Return how good it is, the more the better; below 0 where no load keeps the latency."""
        best = self.best(points)
        if self.latency_ms is None or best.p99_ms <= self.latency_ms:
            return best.images_per_s
        return -best.p99_ms


class Trial(Metadata):
    """One variant's turn.

    Attributes:
        stage: What was chosen among.
        turn: Of the stage, from 1; fewer variants get a longer one each time.
        seconds: Length, for each load, in two halves.
        variant: Who.
        points: By load, means of both halves; empty where it failed.
        beside: What the repository as it was answered just before and just after, likewise.
        error: Why it was discarded; empty where it was not.
    """

    stage: str
    turn: int
    seconds: float
    variant: Variant
    points: tuple[Point, ...] = ()
    beside: tuple[Point, ...] = ()
    error: str = ""

    def ratio(self, objective: Objective) -> float:
        """Return its images per second over what the repository as it was answers at most in the same minute."""
        return objective.best(self.points).images_per_s / max(one.images_per_s for one in self.beside)

    def merit(self, objective: Objective) -> float:
        """Return how good it is, the more the better; below 0 where no load keeps the latency."""
        merit = objective.merit(self.points)
        # What else the machine does hits both alike.
        return merit if merit < 0 else self.ratio(objective)


class Final(Metadata):
    """One turn of the comparison at the end, of two servers that run at once and are asked by turns."""

    side: Side
    turn: int
    points: tuple[Point, ...]


class Gain(Metadata):
    """How many times as many images a second `after` answers as `before`: the mean over turns, each with its pair.

    Attributes:
        ratio: Geometric mean.
        low: Of the 95% interval, by Student's t of the logarithms; None of a single turn.
        high: Likewise.
    """

    ratio: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.2f} times as many"
        noise = ", which may be noise" if self.low <= 1 <= self.high else ""
        return f"{self.ratio:.2f} times as many (95% interval {self.low:.2f} to {self.high:.2f}{noise})"


class TuneResult(Metadata):
    """All of a tuning.

    Attributes:
        version: Of this format.
        repository: Which, as named.
        objective: What was best.
        images: What was sent, in words.
        machine: Where everything ran.
        versions: Of what was involved.
        notes: What was not tried, and why.
        trials: In the order in which they were taken.
        best: What the search ended with.
        finals: `before` is the repository as it was, `after` is `best`.
        gain: Of `after` over `before`.
        chosen: What is written: `best`, or None where it was no better than the repository as it was.
        reason: Why, in a line.
    """

    version: Literal[1] = 1
    repository: str
    objective: Objective
    images: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    best: Variant
    finals: tuple[Final, ...]
    gain: Gain
    chosen: Variant | None
    reason: str

    def medians(self, side: Side) -> list[Point]:
        """Return the medians over turns, a point for each load."""
        return medians_of(self.finals, side)


def medians_of(finals: Sequence[Final], side: Side) -> list[Point]:
    """Return the medians over the turns of one side, a point for each load."""
    turns = [final.points for final in finals if final.side == side]
    found = []
    for points in zip(*turns, strict=True):
        figures = {
            name: statistics.median(getattr(one, name) for one in points)
            for name in ("images_per_s", "p50_ms", "p99_ms")
        }
        requests = sum(one.requests for one in points)
        found.append(Point(clients=points[0].clients, requests=requests, **figures))
    return found


def gain_of(finals: Sequence[Final], objective: Objective) -> Gain:
    """Return how many times as many images a second `after` answers as `before`, turn by turn."""
    rates: dict[Side, dict[int, float]] = {"before": {}, "after": {}}
    for one in finals:
        rates[one.side][one.turn] = objective.best(one.points).images_per_s
    logs = [math.log(rates["after"][turn] / rates["before"][turn]) for turn in rates["before"]]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Gain(ratio=math.exp(mean))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Gain(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def csv_from_result(result: TuneResult) -> str:
    """Return every measurement as CSV, a row for each turn and load."""
    figures = [name for name in Point.model_fields if name != "clients"]
    rows: list[list[object]] = [["stage", "turn", "variant", "clients", *figures, "error"]]
    sides = {"before": "the repository as it was", "after": str(result.best)}
    measured = []
    for one in result.trials:
        measured.append((one.stage, one.turn, str(one.variant), one.points, one.error))
        if one.beside:
            measured.append((one.stage, one.turn, f"beside it: {sides['before']}", one.beside, ""))
    measured += [("at the end", one.turn, f"{one.side}: {sides[one.side]}", one.points, "") for one in result.finals]
    for stage, turn, variant, points, error in measured:
        for point in points:
            values = (f"{getattr(point, name):.6g}" for name in figures)
            rows.append([stage, turn, variant, point.clients, *values, error])
        if not points:
            rows.append([stage, turn, variant, "", *("" for _ in figures), error])
    return csv_from_rows(rows)
