"""How each member is served: in the precision asked for, or whatever is fastest and answers as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import MissingExtraError, ParityError, needs_extra
from plurum.export.graphs.float16 import check_overflow, fp16_from_onnx, overflow_audit
from plurum.export.graphs.member import PixelModel, onnx_from_model
from plurum.export.graphs.quantisation import int8_from_onnx
from plurum.export.graphs.runtimes import Artefact, latency_ms, logits_from_artefact, logits_from_model
from plurum.export.repository.parity import Parity, check_parity, member_parity
from plurum.export.settings import EXECUTIONS, Execution, ExportSettings
from plurum.voting import softmax

__all__ = ["Candidate", "Choice", "Sample", "choose", "evenly", "fastest"]

# What is faster than FP32 by less than this is not worth what it changes.
_WORTH = 1.1


@dataclass(frozen=True)
class Sample:
    """The run's images that an export works with.

    Attributes:
        pixels: uint8 `[images, height, width, 3]`: held out, what artefacts are checked on.
        labels: `[images]`, int64: their true classes.
        calibration: uint8 `[images, height, width, 3]`: of the training split.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """An artefact, and how it fared.

    Attributes:
        artefact: The graph.
        parity: With PyTorch.
        probabilities: What it answers to the sample, `[images, classes]`.
        latency_ms: One image on one thread; None where that was not measured.
    """

    artefact: Artefact
    parity: Parity
    probabilities: npt.NDArray[np.float64]
    latency_ms: float | None = None


@dataclass(frozen=True)
class Choice:
    """A member's candidates and the one that is taken.

    Attributes:
        member: Its name.
        original: What PyTorch answers to the sample, `[images, classes]`.
        candidates: By how they are executed, the reference first; those that were made.
        taken: Which of them.
        reason: Why, in words.
    """

    member: str
    original: npt.NDArray[np.float64]
    candidates: dict[Execution, Candidate] = field(default_factory=dict)
    taken: Execution = EXECUTIONS["cpu"][0]
    reason: str = "as asked for"

    @property
    def candidate(self) -> Candidate:
        """The one that is taken."""
        return self.candidates[self.taken]

    def back_to_fp32(self, reason: str) -> Choice:
        """Return the choice of the reference instead."""
        return replace(self, taken=next(iter(self.candidates)), reason=reason)


def evenly(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the rows, evenly spread: neighbours may be of one class or patient."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]


def choose(
    name: str,
    model: PixelModel,
    sample: Sample,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> Choice:
    """Make the member's artefacts in `folder`, compare each with PyTorch, and take one.

    Raises:
        MissingExtraError: the precision asked for needs a package that is not installed.
        ParityError: no artefact that may be published came out.
    """
    source = folder / f"{name}.fp32.onnx"
    progress(f"{name}: to ONNX")
    onnx_from_model(model, source)
    choice = Choice(name, softmax(logits_from_model(model, sample.pixels)))
    wanted = _wanted(settings)
    notes: list[str] = []
    for execution in wanted:
        try:
            candidate = _candidate(choice, execution, source, sample, settings, progress)
        except (MissingExtraError, ParityError) as error:
            if len(wanted) == 1:
                raise
            notes.append(f"{execution} was not made: {error}")
            continue
        if settings.precision == "auto" and execution == wanted[0]:
            # The reference, before the others take their time.
            check_parity(candidate.parity)
        choice.candidates[execution] = candidate
    parities = [one.parity for one in choice.candidates.values()]
    if not any(one.passed for one in parities):
        check_parity(min(parities, key=lambda one: one.max_difference), notes)
    if len(wanted) == 1:
        return replace(choice, taken=wanted[0])
    return fastest(choice, notes) if settings.target == "cpu" else _half_where_it_passes(choice, notes)


def _wanted(settings: ExportSettings) -> list[Execution]:
    return [one for one in EXECUTIONS[settings.target] if settings.precision in {"auto", one.precision}]


def _candidate(
    choice: Choice,
    execution: Execution,
    source: Path,
    sample: Sample,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> Candidate:
    name, precision = choice.member, execution.precision
    progress(f"{name}: {execution}")
    artefact = _artefact(name, execution, source, sample)
    progress(f"{name}: {execution} compared with PyTorch on {len(sample.pixels)} validation images")
    probabilities = softmax(logits_from_artefact(artefact, sample.pixels))
    budget = settings.budget(precision)
    parity = member_parity(name, precision, choice.original, probabilities, sample.labels, budget)
    measured = settings.target == "cpu" and len(_wanted(settings)) > 1
    return Candidate(artefact, parity, probabilities, latency_ms(artefact, sample.pixels) if measured else None)


def _artefact(name: str, execution: Execution, source: Path, sample: Sample) -> Artefact:
    path = source.with_name(f"{name}.{execution.precision}.{execution.backend}.onnx")
    if execution.backend == "openvino":
        # Before what takes long.
        with needs_extra("openvino", "openvino"):
            pass
    if execution.precision == "int8":
        int8_from_onnx(source, sample.calibration, path, execution.backend)
    elif execution.precision == "fp16":
        fp16_from_onnx(source, sample.calibration, path)
        check_overflow(name, overflow_audit(source, path, sample.calibration))
    else:
        # OpenVINO rounds to BF16 as it compiles; the graph is the FP32 one.
        path = source
    return Artefact(name, execution.precision, execution.backend, path)


def fastest(choice: Choice, notes: list[str]) -> Choice:
    """Take what takes the least time among what may be published; FP32 unless another is clearly faster."""
    times = {execution: one.latency_ms or 0.0 for execution, one in choice.candidates.items()}
    best = min((execution for execution, one in choice.candidates.items() if one.parity.passed), key=times.__getitem__)
    reference = next(iter(times))
    if reference.precision == "fp32" and times[reference] < _WORTH * times[best]:
        best = reference
    told = ", ".join(f"{execution} {time:.1f} ms" for execution, time in times.items())
    failed = [
        f"{execution} would break its budget: {'; '.join(one.parity.faults)}"
        for execution, one in choice.candidates.items()
        if not one.parity.passed
    ]
    return replace(choice, taken=best, reason="; ".join([f"the fastest that passes ({told})", *failed, *notes]))


def _half_where_it_passes(choice: Choice, notes: list[str]) -> Choice:
    """Take FP16 where it may be published: it is what GPUs multiply fastest, and there may be none here to ask."""
    reference, wanted = EXECUTIONS["gpu"]
    half = choice.candidates.get(wanted)
    if half is not None and half.parity.passed:
        return replace(choice, taken=wanted, reason="FP16 passes; its speed is not measured here")
    faults = [] if half is None else [f"fp16 would break its budget: {'; '.join(half.parity.faults)}"]
    return replace(choice, taken=reference, reason="; ".join([*faults, *notes]))
