"""The objective, the measurements and the choice of a tuning, as in `tuning.json` and `tuning.csv`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from plurum.benchmarks.tools.load import LoadFigures, average_of
from plurum.benchmarks.tune.variant import Variant
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["Final", "Gain", "Objective", "Side", "TuneResult", "TuneTrial", "csv_from_result", "gain_of", "medians_of"]

Side = Literal["before", "after"]


class Objective(Metadata):
    """Objective of a tuning: the most images per second within a latency limit.

    Attributes:
        model: Model that receives requests: `ensemble` takes encoded images, `ensemble_pixels` decoded ones.
        clients: Loads, in requests in flight; the best of them counts.
        latency_ms: Limit on the 99th percentile of the latency, ms; None if only throughput counts.
    """

    model: Literal["ensemble", "ensemble_pixels"]
    clients: tuple[Annotated[int, Field(ge=1)], ...]
    latency_ms: Annotated[float, Field(gt=0)] | None = None

    def __str__(self) -> str:
        limit = "" if self.latency_ms is None else f" with p99 <= {self.latency_ms:g} ms"
        return f"most images/s of {self.model}{limit} at {' or '.join(map(str, self.clients))} in flight"

    def best(self, points: Sequence[LoadFigures]) -> LoadFigures:
        """Return the best load: the most images per second within the limit, else the lowest 99th percentile."""
        counted = [one for one in points if one.clients in self.clients]
        within = [one for one in counted if self.latency_ms is None or one.p99_ms <= self.latency_ms]
        if within:
            return max(within, key=lambda one: one.images_per_s)
        return min(counted, key=lambda one: one.p99_ms)

    def merit(self, points: Sequence[LoadFigures]) -> float:
        """Return a score, higher is better; below 0 if no load keeps the latency limit."""
        best = self.best(points)
        if self.latency_ms is None or best.p99_ms <= self.latency_ms:
            return best.images_per_s
        return -best.p99_ms


class TuneTrial(Metadata):
    """One turn of a variant.

    Attributes:
        stage: Stage of the search.
        turn: Number of the turn in its stage, from 1; each turn has fewer variants and is longer.
        seconds: Length of the turn for each load, in two halves.
        variant: Variant that was measured.
        points: Mean figures of both halves by load; empty if the variant failed.
        beside: Mean figures of the original repository just before and just after, by load.
        error: Reason why the variant was discarded; empty if it was not.
    """

    stage: str
    turn: int
    seconds: float
    variant: Variant
    points: tuple[LoadFigures, ...] = ()
    beside: tuple[LoadFigures, ...] = ()
    error: str = ""

    def ratio(self, objective: Objective) -> float:
        """Return its images per second over the best of the original repository in the same minute."""
        return objective.best(self.points).images_per_s / max(one.images_per_s for one in self.beside)

    def merit(self, objective: Objective) -> float:
        """Return a score, higher is better; below 0 if no load keeps the latency limit."""
        merit = objective.merit(self.points)
        # A ratio, as other work on the machine affects both alike.
        return merit if merit < 0 else self.ratio(objective)


class Final(Metadata):
    """One turn of the final comparison, of two servers that run at once and receive requests in turn."""

    side: Side
    turn: int
    points: tuple[LoadFigures, ...]


class Gain(Metadata):
    """Ratio of the images per second of `after` to those of `before`, over pairs of turns.

    Attributes:
        ratio: Geometric mean.
        low: Lower end of the 95 % interval, by Student's t of the logarithms; None for a single turn.
        high: Upper end of the 95 % interval; None for a single turn.
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
    """Result of a tuning.

    Attributes:
        version: Version of this format.
        repository: Repository, as the user named it.
        objective: Objective of the tuning.
        images: Images that were sent, in words.
        machine: Machine of the measurement.
        versions: Package versions of the measurement.
        notes: Variants that were not tried, and why.
        trials: Trials in the order in which they were taken.
        best: Best variant of the search.
        finals: Turns of the final comparison: `before` is the original repository, `after` is `best`.
        gain: Ratio of `after` to `before`.
        chosen: Variant that was written: `best`, or None for the original if `best` is not clearly better.
        reason: Reason for the choice, in one line.
    """

    version: Literal[1] = 1
    repository: str
    objective: Objective
    images: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    notes: tuple[str, ...]
    trials: tuple[TuneTrial, ...]
    best: Variant
    finals: tuple[Final, ...]
    gain: Gain
    chosen: Variant | None
    reason: str

    def medians(self, side: Side) -> list[LoadFigures]:
        """Return the median figures over turns, by load."""
        return medians_of(self.finals, side)


def medians_of(finals: Sequence[Final], side: Side) -> list[LoadFigures]:
    """Return the median figures over the turns of one side, by load."""
    turns = [final.points for final in finals if final.side == side]
    return [average_of(loads, statistics.median) for loads in zip(*turns, strict=True)]


def gain_of(finals: Sequence[Final], objective: Objective) -> Gain:
    """Return the ratio of the images per second of `after` to those of `before`, over pairs of turns."""
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
    """Return every measurement as CSV, one row for each turn and load."""
    figures = [name for name in LoadFigures.model_fields if name != "clients"]
    sides = {"before": "the repository as it was", "after": str(result.best)}
    turns: list[tuple[str, int, str, Sequence[LoadFigures], str]] = []
    for one in result.trials:
        turns.append((one.stage, one.turn, str(one.variant), one.points, one.error))
        if one.beside:
            turns.append((one.stage, one.turn, f"beside it: {sides['before']}", one.beside, ""))
    turns += [("at the end", one.turn, f"{one.side}: {sides[one.side]}", one.points, "") for one in result.finals]
    rows: list[list[object]] = []
    for stage, turn, variant, loads, error in turns:
        for load in loads:
            measured = (f"{getattr(load, name):.6g}" for name in figures)
            rows.append([stage, turn, variant, load.clients, *measured, error])
        if not loads:
            rows.append([stage, turn, variant, "", *("" for _ in figures), error])
    return csv_from_rows([["stage", "turn", "variant", "clients", *figures, "error"], *rows])
