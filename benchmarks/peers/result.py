"""What came of it, as peers.json and peers.csv state it."""

from __future__ import annotations

import statistics
from typing import Annotated

import numpy as np
from pydantic import Field

from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["Contender", "LeftOut", "PeersResult", "TurnOf", "csv_from_result", "markdown_from_result"]

Positive = Annotated[float, Field(gt=0)]


class Contender(Metadata):
    """Who was measured.

    Attributes:
        name: In the table of turns.
        title: For people.
        setup: How it was set up, for people.
        versions: Of its own packages.
        ours: Whether it is Plurum.
        difference: Largest difference of a probability from PyTorch's over all images.
    """

    name: str
    title: str
    setup: str
    versions: dict[str, str]
    ours: bool
    difference: float


class LeftOut(Metadata):
    """Who was not, and why."""

    name: str
    reason: str


class TurnOf(Metadata):
    """One turn.

    Attributes:
        name: The contender's.
        clients: Requests in flight.
        round: From 1.
        images_per_s: Answered.
        latencies_ms: Of every request, as its client saw it.
    """

    name: str
    clients: int
    round: int
    images_per_s: Positive
    latencies_ms: tuple[float, ...]


class PeersResult(Metadata):
    """All of one run.

    Attributes:
        members: timm's names.
        size: Height and width, pixels.
        image_bytes: Mean size of a JPEG.
        spread: Standard deviation of the winner's probability over the images: what a difference is to be held beside.
        seconds: Length of a turn.
        rounds: Turns of everyone at each number of clients.
        tolerance: Largest difference that Plurum's answers might have from PyTorch's; its peers compute in FP32.
        contenders: Who was measured.
        left_out: Who could not be.
        turns: All of them.
        accuracy: On test images, 0 to 1, of the FP32 graphs and of what Plurum serves; empty where nothing was trained.
        machine: What they were taken on.
        versions: Of what all share.
    """

    members: tuple[str, ...]
    size: int
    image_bytes: int
    spread: float
    seconds: float
    rounds: int
    tolerance: float
    contenders: tuple[Contender, ...]
    left_out: tuple[LeftOut, ...]
    turns: tuple[TurnOf, ...]
    accuracy: dict[str, float]
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    @property
    def clients(self) -> tuple[int, ...]:
        """Numbers of clients, the largest first."""
        return tuple(sorted({turn.clients for turn in self.turns}, reverse=True))

    def rates(self, name: str, clients: int) -> list[float]:
        """Return images per second, a figure a round."""
        return [turn.images_per_s for turn in self._turns(name, clients)]

    def rate(self, name: str, clients: int) -> float:
        """Return their median."""
        return statistics.median(self.rates(name, clients))

    def latency_ms(self, name: str, clients: int, percentile: float) -> float:
        """Return a percentile, 0 to 100, over the requests of all rounds."""
        return float(
            np.percentile([one for turn in self._turns(name, clients) for one in turn.latencies_ms], percentile)
        )

    def best(self, clients: int) -> Contender:
        """Return Plurum's form with the most images per second."""
        return max((one for one in self.contenders if one.ours), key=lambda one: self.rate(one.name, clients))

    def _turns(self, name: str, clients: int) -> list[TurnOf]:
        return [turn for turn in self.turns if (turn.name, turn.clients) == (name, clients)]


def csv_from_result(result: PeersResult) -> str:
    """Return a table with a row for each turn."""
    rows: list[list[object]] = [["name", "clients", "round", "images_per_s", "requests", "p50_ms", "p99_ms"]]
    for turn in result.turns:
        p50, p99 = np.percentile(turn.latencies_ms, [50, 99])
        figures = (f"{turn.images_per_s:.3f}", len(turn.latencies_ms), f"{p50:.3f}", f"{p99:.3f}")
        rows.append([turn.name, turn.clients, turn.round, *figures])
    return csv_from_rows(rows)


def markdown_from_result(result: PeersResult) -> str:
    """Return the table of the page, the most images per second first, and a line on who was left out."""
    most = result.clients[0]
    best = result.best(most)
    heads = [f"images/s, {count} client{'s' * (count > 1)} | p50 ms | p99 ms" for count in result.clients]
    lines = [f"| | {' | '.join(heads)} | {best.title} over it |", "|---" + "|--:" * (3 * len(heads) + 1) + "|"]
    for one in sorted(result.contenders, key=lambda one: -result.rate(one.name, most)):
        cells = []
        for count in result.clients:
            rates = result.rates(one.name, count)
            cells.append(f"{result.rate(one.name, count):.1f} ({min(rates):.1f} to {max(rates):.1f})")
            cells += [f"{result.latency_ms(one.name, count, percentile):.0f}" for percentile in (50, 99)]
        ratio = result.rate(best.name, most) / result.rate(one.name, most)
        title = f"**{one.title}**" if one.ours else one.title
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio:.2f} |")
    state = result.machine
    precision = f"peers in FP32, Plurum's answers within {result.tolerance:g} of PyTorch's"
    lines += [
        "",
        f"{', '.join(result.members)} at {result.size} x {result.size}, {precision};",
        f"JPEGs of {result.image_bytes:,} bytes.",
        f"Medians of {result.rounds} turns of {result.seconds:g} s each, in brackets the lowest and the highest.",
        f"{state['processor']}, {state['cores']} cores, load average before {state['load_1min']}.",
    ]
    if result.accuracy:
        figures = ", ".join(f"{name} {share:.1%}" for name, share in result.accuracy.items())
        lines.append(f"Accuracy on test images: {figures}.")
    lines += [f"Left out: {one.name}: {one.reason}." for one in result.left_out]
    return "\n".join(lines) + "\n"
