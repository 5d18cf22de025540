"""The result of a comparison of architectures, from which tables, JSON, CSV, pictures and the page are made.

A figure is None if it does not exist or is not known: the ROC-AUC of data with a class that no test image has, the
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
    "ComparedArchitecture",
    "Comparison",
    "Costs",
    "Memory",
    "ParetoPoint",
    "Runtime",
    "Speed",
    "Spread",
    "Vote",
    "pareto_front",
    "points_of",
]

Runtime = Literal["pytorch", "onnx_fp32", "onnx_int8"]
# Names of the runtimes for people.
RUNTIMES: dict[Runtime, str] = {"pytorch": "PyTorch", "onnx_fp32": "ONNX FP32", "onnx_int8": "ONNX INT8"}
SHOWN_METRICS = ("accuracy", "precision", "recall", "f1", "roc_auc")


class Spread(Metadata):
    """A measured figure over its turns.

    Attributes:
        median: Median over turns.
        lowest: Lowest turn.
        highest: Highest turn.
    """

    median: float
    lowest: float
    highest: float


class Speed(Metadata):
    """Latency and throughput in one runtime.

    Attributes:
        latency_ms: Latency of one image on one thread, ms.
        images_per_s: Throughput in batches, one at a time on every core.
    """

    latency_ms: Spread
    images_per_s: Spread


class Memory(Metadata):
    """Highest memory of a process of its own, in MB (10^6 bytes).

    Attributes:
        idle: Memory after the import of the runtime, before the model is loaded.
        peak: Memory after the model was loaded and has predicted.
    """

    idle: float
    peak: float


class Costs(Metadata):
    """Costs of an architecture on any machine, and its memory on this one.

    Attributes:
        key: Checkpoint, data and versions that the costs were measured with.
        parameters: Number of weights.
        gflops: Floating-point operations per image, 10^9; a multiplication and its addition are two.
        size_mb: Size on disk of the PyTorch checkpoint and of both graphs, 10^6 bytes.
        memory_mb: Memory during predictions, 10^6 bytes.
    """

    key: str
    parameters: int
    gflops: float
    size_mb: dict[Runtime, float]
    memory_mb: dict[Runtime, Memory]


class ComparedArchitecture(Metadata):
    """Figures of an architecture with its weights, or of an ONNX graph.

    Attributes:
        name: Name of the member.
        arch: Architecture, as `timm.create_model` takes it; for an ONNX graph, its origin in words.
        format: Kind of the checkpoint, as in `Member`.
        origin: Origin of the weights.
        epochs: Number of training epochs; None if not known.
        training_s: Training time on the machine that trained it, seconds; None if not known.
        metrics: Metrics of the member itself (PyTorch) on test images, by the names in `SHOWN_METRICS`.
        accuracy: Accuracy on test images, by runtime.
        costs: Size, operations, memory.
        speed: Latency and throughput, by runtime.
    """

    name: str
    arch: str
    format: Literal["timm", "onnx"] = "timm"
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
        members: Names of the members.
        weights: Weight of each member; they sum to 1.
        temperature: Temperature after averaging.
        accuracy: Accuracy on test images.
        nll: NLL on test images, nats.
        latency_ms: Sum of the members' latencies (ONNX FP32), ms.
        beside: Members of the cheaper alternative: of all members and votes with a lower latency, the one with the
            lowest validation NLL.
        accuracy_gained: Accuracy minus that of the alternative, paired.
        nll_change: NLL minus that of the alternative, paired; below 0 is better.
        verdict: Worth its cost if accuracy or NLL is significantly better (95 % interval excludes 0) and neither is
            significantly worse.
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
        """Names of the members, joined by a plus sign."""
        return " + ".join(self.members)


class ParetoPoint(Metadata):
    """A member or a vote on the plane of accuracy and latency.

    Attributes:
        name: Name of the member, or of the vote.
        runtime: Runtime that predicts.
        accuracy: Accuracy on test images.
        latency_ms: Latency of one image on one thread, ms; for a vote the sum over its members.
    """

    name: str
    runtime: Runtime
    accuracy: float
    latency_ms: float


class Comparison(Metadata):
    """Architectures that learnt the same images, side by side.

    Attributes:
        version: Version of this format.
        data: Name of the data, as `plurum train` takes it.
        fingerprint: SHA-256 over pixels and labels.
        classes: Number of classes.
        height: Height of the members' input image, pixels.
        width: Width of the members' input image, pixels.
        images: Number of images, by split.
        patients: Number of known patients in the test split.
        draws: Number of bootstrap draws behind every interval.
        drawn: Unit of the bootstrap.
        seed: Seed of the bootstrap.
        batch_size: Images per batch in the measurement of throughput.
        turns: Number of turns of every measurement.
        compared: Architectures in the order in which the user named them.
        votes: All ensembles of them, in ascending order of latency.
        front: Points that no other point beats: none is as accurate and faster, or as fast and more accurate.
        machine: Machine of the measurement.
        versions: Versions of the packages that figures depend on.
        notes: Remarks on the figures, one sentence each.
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
    compared: tuple[ComparedArchitecture, ...]
    votes: tuple[Vote, ...]
    front: tuple[ParetoPoint, ...]
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    notes: tuple[str, ...]


def points_of(compared: Sequence[ComparedArchitecture], votes: Sequence[Vote]) -> tuple[ParetoPoint, ...]:
    """Return every member in every runtime, and every vote in ONNX FP32."""
    members = [
        ParetoPoint(
            name=one.name, runtime=runtime, accuracy=figure.value, latency_ms=one.speed[runtime].latency_ms.median
        )
        for one in compared
        for runtime, figure in one.accuracy.items()
        if figure.value is not None
    ]
    together = [
        ParetoPoint(name=vote.name, runtime="onnx_fp32", accuracy=vote.accuracy.value, latency_ms=vote.latency_ms)
        for vote in votes
        if vote.accuracy.value is not None
    ]
    return (*members, *together)


def pareto_front(points: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Return the points that no other point beats, in ascending order of latency; of equal points, the first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda one: (one.latency_ms, -one.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return tuple(front)
