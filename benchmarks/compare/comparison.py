"""What a comparison of architectures says: one value for the tables, the JSON, the CSV, the pictures and the page.

None stands where a figure does not exist or is not known: the ROC-AUC of data with a class that no test image has, the
training time of a checkpoint from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from plurum.spec import Metadata
from plurum.training.statistics.results import Estimate

__all__ = [
    "RUNTIMES",
    "SHOWN_METRICS",
    "Compared",
    "Comparison",
    "Costs",
    "Memory",
    "Point",
    "Runtime",
    "Speed",
    "Spread",
    "Vote",
    "pareto_front",
    "points_of",
]

Runtime = Literal["pytorch", "onnx_fp32", "onnx_int8"]
# With their names for people.
RUNTIMES: dict[Runtime, str] = {"pytorch": "PyTorch", "onnx_fp32": "ONNX FP32", "onnx_int8": "ONNX INT8"}
SHOWN_METRICS = ("accuracy", "precision", "recall", "f1", "roc_auc")


class Spread(Metadata):
    """A measured figure over its turns.

    Attributes:
        median: Over turns.
        lowest: Of a turn.
        highest: Of a turn.
    """

    median: float
    lowest: float
    highest: float


class Speed(Metadata):
    """How fast answers come.

    Attributes:
        latency_ms: Of one image on one thread.
        images_per_s: In batches, one at a time on every core.
    """

    latency_ms: Spread
    images_per_s: Spread


class Memory(Metadata):
    """What a process of its own held at most, in MB (10^6 bytes).

    Attributes:
        idle: Once the runtime was imported, before the model.
        peak: After the model was loaded and has answered.
    """

    idle: float
    peak: float


class Costs(Metadata):
    """What an architecture costs on any machine, and in memory on this one.

    Attributes:
        key: What these were taken of: checkpoint, data and versions.
        parameters: How many weights it has.
        gflops: Of one image, 10^9 floating-point operations; a multiplication and its addition are two.
        size_mb: On disk, 10^6 bytes, of the PyTorch checkpoint and of both graphs.
        memory_mb: While it answers.
    """

    key: str
    parameters: int
    gflops: float
    size_mb: dict[Runtime, float]
    memory_mb: dict[Runtime, Memory]


class Compared(Metadata):
    """An architecture with its weights.

    Attributes:
        name: The member's.
        arch: What `timm.create_model` takes.
        origin: Where the weights come from.
        epochs: It was trained for; None where that is not known.
        training_s: What that took on the machine that trained it, seconds; None where that is not known.
        metrics: On test images, by the names in `SHOWN_METRICS`, answered by PyTorch.
        accuracy: On the same images, as each runtime answers them.
        costs: Size, operations, memory.
        speed: By runtime.
    """

    name: str
    arch: str
    origin: Literal["trained", "run", "checkpoint"]
    epochs: int | None
    training_s: float | None
    metrics: dict[str, Estimate]
    accuracy: dict[Runtime, Estimate]
    costs: Costs
    speed: dict[Runtime, Speed]


class Vote(Metadata):
    """A soft vote of some of those compared, fitted on validation images and scored on test images.

    Attributes:
        members: Names.
        weights: One per member, together 1.
        temperature: After averaging.
        accuracy: On test images.
        nll: On test images, nats.
        latency_ms: The members' latencies (ONNX FP32) added up.
        beside: The cheaper alternative: of all members and votes with a lower latency, that with the lowest validation
            NLL.
        accuracy_gained: Its accuracy less that of the alternative, paired.
        nll_change: Its NLL less that of the alternative, paired; below 0 is better.
        verdict: Worth its cost when it is better beyond chance in accuracy or NLL, and worse in neither.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    temperature: float
    accuracy: Estimate
    nll: Estimate
    latency_ms: float
    beside: tuple[str, ...]
    accuracy_gained: Estimate
    nll_change: Estimate
    verdict: Literal["worth its cost", "no better", "worse"]

    @property
    def name(self) -> str:
        """The members' names, added up."""
        return " + ".join(self.members)


class Point(Metadata):
    """One way to answer, on the plane of accuracy and latency.

    Attributes:
        name: Of the member, or of the vote.
        runtime: What answers.
        accuracy: On test images.
        latency_ms: One image on one thread; a vote's is the sum of its members'.
    """

    name: str
    runtime: Runtime
    accuracy: float
    latency_ms: float


class Comparison(Metadata):
    """Architectures that learnt the same images, side by side.

    Attributes:
        version: Of this format.
        data: As it was named to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        classes: How many there are.
        height: Of the images that members see, pixels.
        width: Likewise.
        images: By split.
        patients: Known in the test split.
        draws: Of the bootstrap behind every interval.
        drawn: What is drawn.
        seed: What it is drawn from.
        batch_size: Of the measured throughput.
        turns: How often each was measured, in turns with all others.
        compared: In the order in which they were asked for.
        votes: All ensembles of them, the cheapest first.
        front: The points that no other point beats: none is as accurate and faster, or as fast and more accurate.
        machine: What the measurements were taken on.
        versions: Of the packages that matter.
        notes: What to mind, a line each.
    """

    version: Literal[1] = 1
    data: str
    fingerprint: str
    classes: int
    height: int
    width: int
    images: dict[str, int]
    patients: int
    draws: int
    drawn: Literal["patients", "images"]
    seed: int
    batch_size: int
    turns: int
    compared: tuple[Compared, ...]
    votes: tuple[Vote, ...]
    front: tuple[Point, ...]
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    notes: tuple[str, ...]


def points_of(compared: Sequence[Compared], votes: Sequence[Vote]) -> tuple[Point, ...]:
    """Return every member in every runtime, and every vote in ONNX FP32."""
    members = [
        Point(name=one.name, runtime=runtime, accuracy=figure.value, latency_ms=one.speed[runtime].latency_ms.median)
        for one in compared
        for runtime, figure in one.accuracy.items()
        if figure.value is not None
    ]
    together = [
        Point(name=vote.name, runtime="onnx_fp32", accuracy=vote.accuracy.value, latency_ms=vote.latency_ms)
        for vote in votes
        if vote.accuracy.value is not None
    ]
    return (*members, *together)


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats, the fastest first; of equals, the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.latency_ms, -one.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return tuple(front)
