"""The result of a comparison, as in peers.json and peers.csv."""

from __future__ import annotations

import statistics

import numpy as np

from plurum.benchmarks.peers.load import Turn
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = [
    "Accuracy",
    "LeftOutPeer",
    "MeasuredPeer",
    "PeerTurn",
    "PeersResult",
    "csv_from_result",
    "markdown_from_result",
]


class MeasuredPeer(Metadata):
    """A framework that was measured.

    Attributes:
        name: Name in the table of turns.
        title: Name for people.
        setup: Set-up for people.
        versions: Versions of its own packages.
        ours: True for Plurum.
        difference: Largest difference of a probability from PyTorch's over all images.
    """

    name: str
    title: str
    setup: str
    versions: dict[str, str]
    ours: bool
    difference: float


class LeftOutPeer(Metadata):
    """A framework that could not be measured, and the reason."""

    name: str
    reason: str


class PeerTurn(Turn):
    """One turn of a framework.

    Attributes:
        name: Name of the framework.
        clients: Requests in flight.
        round: Number of the round, from 1.
        start: Number of the start of all frameworks, from 1.
    """

    name: str
    clients: int
    round: int
    start: int = 1


class Accuracy(Metadata):
    """Predictions of trained members for all test images; fractions, 0 to 1.

    Attributes:
        images: Number of test images.
        full: Accuracy of the FP32 graphs with all members, which peers compute.
        served: Accuracy of the repository that Plurum serves.
        loss: How much lower the latter is.
        loss_interval: 95 % interval of `loss` (paired bootstrap over images).
        same_label: Fraction of images to which both give the same label.
        settled: Fraction of images that a stage of the cascade settles before the last; None without a cascade.
    """

    images: int
    full: float
    served: float
    loss: float
    loss_interval: tuple[float, float]
    same_label: float
    settled: float | None = None


class PeersResult(Metadata):
    """Result of a comparison.

    Attributes:
        members: Architectures of the members, by timm's names.
        size: Height and width of the images, pixels.
        image_bytes: Mean size of a JPEG, bytes.
        spread: Standard deviation over the images of the highest probability; compare differences with it.
        seconds: Length of a turn.
        rounds: Turns of every framework at each number of clients, after each start.
        starts: How often everything was started anew.
        tolerance: Largest allowed difference between a probability of Plurum and of PyTorch; peers compute in FP32.
        contenders: Frameworks that were measured.
        left_out: Frameworks that could not be measured.
        turns: All turns.
        accuracy: Predictions for test images; None if nothing was trained.
        settled: Fraction of Plurum's images, in all turns, that a stage of the cascade settled before the last, 0 to 1;
            None without a cascade.
        machine: Machine of the measurement.
        versions: Versions of the packages that all frameworks share.
    """

    members: tuple[str, ...]
    size: int
    image_bytes: int
    spread: float
    seconds: float
    rounds: int
    starts: int = 1
    tolerance: float
    contenders: tuple[MeasuredPeer, ...]
    left_out: tuple[LeftOutPeer, ...]
    turns: tuple[PeerTurn, ...]
    accuracy: Accuracy | None = None
    settled: float | None = None
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    @property
    def clients(self) -> tuple[int, ...]:
        """Numbers of clients, the largest first."""
        return tuple(sorted({turn.clients for turn in self.turns}, reverse=True))

    def rates(self, name: str, clients: int) -> list[float]:
        """Return images per second in each round; after several starts, the median of each start's rounds."""
        turns = self._turns(name, clients)
        if self.starts == 1:
            return [turn.images_per_s for turn in turns]
        starts = {turn.start: [one.images_per_s for one in turns if one.start == turn.start] for turn in turns}
        return [statistics.median(rates) for rates in starts.values()]

    def rate(self, name: str, clients: int) -> float:
        """Return the median of `rates`."""
        return statistics.median(self.rates(name, clients))

    def latency_ms(self, name: str, clients: int, percentile: float) -> float:
        """Return a percentile (0 to 100) of the latency over the requests of all rounds, ms."""
        return float(
            np.percentile([one for turn in self._turns(name, clients) for one in turn.latencies_ms], percentile)
        )

    def best(self, clients: int) -> MeasuredPeer:
        """Return the endpoint of Plurum with the most images per second."""
        return max((one for one in self.contenders if one.ours), key=lambda one: self.rate(one.name, clients))

    def is_tie(self, one: str, other: str, clients: int) -> bool:
        """Return True if the ranges of two frameworks' images per second overlap."""
        first, second = self.rates(one, clients), self.rates(other, clients)
        return min(first) <= max(second) and min(second) <= max(first)

    def _turns(self, name: str, clients: int) -> list[PeerTurn]:
        return [turn for turn in self.turns if (turn.name, turn.clients) == (name, clients)]


def csv_from_result(result: PeersResult) -> str:
    """Return a table with a row for each turn."""
    rows = []
    for turn in result.turns:
        p50, p99 = np.percentile(turn.latencies_ms, [50, 99])
        figures = (f"{turn.images_per_s:.3f}", len(turn.latencies_ms), f"{p50:.3f}", f"{p99:.3f}")
        rows.append((turn.name, turn.clients, turn.start, turn.round, *figures))
    return csv_from_rows([("name", "clients", "start", "round", "images_per_s", "requests", "p50_ms", "p99_ms"), *rows])


def markdown_from_result(result: PeersResult) -> str:
    """Return the table of the page, the most images per second first, and the frameworks that were left out."""
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
        ratio = f"{result.rate(best.name, most) / result.rate(one.name, most):.2f}"
        if one is not best and result.is_tie(best.name, one.name, most):
            ratio += " (tie)"
        title = f"**{one.title}**" if one.ours else one.title
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio} |")
    return "\n".join([*lines, "", *_notes(result)]) + "\n"


def _notes(result: PeersResult) -> list[str]:
    """Return the lines below the table."""
    state, exact = result.machine, "peers in FP32"
    if result.tolerance < 1:
        exact += f", Plurum's probabilities within {result.tolerance:g} of PyTorch's"
    turns = f"{result.rounds} turns of {result.seconds:g} s each"
    spread = f"Medians of {turns}; lowest and highest in brackets."
    if result.starts > 1:
        spread = f"{result.starts} fresh starts of everything, {turns}: the median of the starts' medians; lowest and "
        spread += "highest start in brackets."
    lines = [
        f"{', '.join(result.members)} at {result.size} x {result.size}, {exact};",
        f"JPEGs of {result.image_bytes:,} bytes.",
        f"{spread} Tie: the ranges overlap.",
        f"{state['processor']}, {state['cores']} cores, load average before {state['load_1min']}.",
    ]
    if (found := result.accuracy) is not None:
        low, high = found.loss_interval
        loss = f"{100 * found.loss:.2f} points lower ({100 * low:.2f} to {100 * high:.2f})"
        lines.append(
            f"Accuracy on {found.images:,} test images: all members in FP32 {found.full:.1%}, served {found.served:.1%}"
            f", {loss}; the same label for {found.same_label:.1%}."
        )
        if found.settled is not None and result.settled is not None:
            lines.append(
                f"Settled before the last stage: {found.settled:.1%} of the test images, {result.settled:.1%} of the "
                "images in the turns."
            )
    return lines + [f"Left out: {one.name}: {one.reason}." for one in result.left_out]
