"""Choose each member's precision and backend: the requested one, or the fastest that passes the parity check."""

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
from plurum.export.graphs.runtimes import Artefact, MemberOutputs, latency_ms, outputs_from_artefact, outputs_from_model
from plurum.export.repository.certification import CertificationImages
from plurum.export.repository.outlier_reference import ReferenceImages
from plurum.export.repository.parity import Parity, check_parity, member_parity, verdict_from_members
from plurum.export.settings import EXECUTIONS, Execution, ExportSettings, Precision
from plurum.voting import OutlierTest, Verdict, VotingRule, softmax

__all__ = [
    "MemberCandidate",
    "MemberChoice",
    "ParitySample",
    "choose_artefact",
    "choose_fastest",
    "original_verdict",
    "select_evenly",
]

# Smallest speed-up over FP32 for which a coarser precision is chosen.
_WORTH = 1.1


@dataclass(frozen=True)
class ParitySample:
    """Images of a run to check and calibrate artefacts on.

    Attributes:
        pixels: Held-out images to check artefacts on, uint8 `[images, height, width, 3]`.
        labels: True classes of `pixels`, int64 `[images]`.
        calibration: Training images to calibrate on, uint8 `[images, height, width, 3]`.
        certification: Images to certify a promise on; None if no patient was set aside.
        reference: Reference images of the outlier test; None without a test.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.uint8]
    certification: CertificationImages | None = None
    reference: ReferenceImages | None = None


@dataclass(frozen=True)
class MemberCandidate:
    """Artefact of a member, with the results of its check.

    Attributes:
        artefact: Graph of the member.
        parity: Differences from PyTorch.
        probabilities: Predictions for the sample, `[images, classes]`.
        latency_ms: Latency of one image on one thread; None if not measured.
        novelty: Novelty of the sample, `[images]`; None without a detector.
    """

    artefact: Artefact
    parity: Parity
    probabilities: npt.NDArray[np.float64]
    latency_ms: float | None = None
    novelty: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class MemberChoice:
    """Candidates of a member, and the chosen one.

    Attributes:
        member: Name of the member.
        original: PyTorch's probabilities for the sample, `[images, classes]`.
        candidates: Candidates that could be built, by execution, the reference first.
        taken: Execution of the chosen candidate.
        reason: Reason for the choice, in words.
        original_novelty: PyTorch's novelty of the sample, `[images]`; None without a detector.
    """

    member: str
    original: npt.NDArray[np.float64]
    candidates: dict[Execution, MemberCandidate] = field(default_factory=dict)
    taken: Execution = EXECUTIONS["cpu"][0]
    reason: str = "as requested"
    original_novelty: npt.NDArray[np.float32] | None = None

    @property
    def candidate(self) -> MemberCandidate:
        """The chosen candidate."""
        return self.candidates[self.taken]

    def back_to_fp32(self, reason: str) -> MemberChoice:
        """Return this choice with the reference instead."""
        return replace(self, taken=next(iter(self.candidates)), reason=reason)


def select_evenly(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the rows, evenly spaced, because neighbours may share a class or a patient."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]


def choose_artefact(
    name: str,
    model: PixelModel,
    sample: ParitySample,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> MemberChoice:
    """Build the member's artefacts in `folder`, compare each with PyTorch, and choose one.

    Raises:
        MissingExtraError: the requested precision needs a package that is not installed.
        ParityError: no artefact passes.
    """
    source = folder / f"{name}.fp32.onnx"
    progress(f"{name}: to ONNX")
    onnx_from_model(model, source)
    original = outputs_from_model(model, sample.pixels)
    choice = MemberChoice(name, softmax(original.logits), original_novelty=original.novelty)
    executions = _candidate_executions(settings)
    notes: list[str] = []
    for execution in executions:
        try:
            candidate = _build_candidate(choice, execution, source, sample, settings, progress)
        except (MissingExtraError, ParityError) as error:
            if len(executions) == 1:
                raise
            notes.append(f"{execution} was not built: {error}")
            continue
        if settings.precision == "auto" and execution == executions[0]:
            # Check the reference first, because building the others takes long.
            check_parity(candidate.parity)
        choice.candidates[execution] = candidate
    parities = [one.parity for one in choice.candidates.values()]
    if not any(one.passed for one in parities):
        check_parity(min(parities, key=lambda one: one.max_difference), notes)
    if len(executions) == 1:
        return replace(choice, taken=executions[0])
    return choose_fastest(choice, notes) if settings.target == "cpu" else _choose_fp16(choice, notes)


def _candidate_executions(settings: ExportSettings) -> list[Execution]:
    return [one for one in settings.executions if settings.precision in {"auto", one.precision}]


def _build_candidate(
    choice: MemberChoice,
    execution: Execution,
    source: Path,
    sample: ParitySample,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> MemberCandidate:
    name, precision = choice.member, execution.precision
    progress(f"{name}: {execution}")
    artefact = _build_artefact(name, execution, source, sample, has_novelty=choice.original_novelty is not None)
    progress(f"{name}: {execution} compared with PyTorch on {len(sample.pixels)} validation images")
    outputs = outputs_from_artefact(artefact, sample.pixels)
    parity = _parity_of_outputs(choice, outputs, precision, sample, settings)
    measured = settings.target == "cpu" and len(_candidate_executions(settings)) > 1
    took_ms = latency_ms(artefact, sample.pixels) if measured else None
    return MemberCandidate(artefact, parity, softmax(outputs.logits), took_ms, outputs.novelty)


def _parity_of_outputs(
    choice: MemberChoice, outputs: MemberOutputs, precision: Precision, sample: ParitySample, settings: ExportSettings
) -> Parity:
    novelty = None
    if choice.original_novelty is not None and outputs.novelty is not None:
        novelty = choice.original_novelty, outputs.novelty
    budget = settings.budget(precision)
    return member_parity(
        choice.member, precision, choice.original, softmax(outputs.logits), sample.labels, budget, novelty
    )


def _build_artefact(
    name: str, execution: Execution, source: Path, sample: ParitySample, *, has_novelty: bool
) -> Artefact:
    path = source.with_name(f"{name}.{execution.precision}.{execution.backend}.onnx")
    if execution.backend == "openvino":
        # Check for the package before the slow conversion.
        with needs_extra("openvino", "openvino"):
            pass
    if execution.precision == "int8":
        int8_from_onnx(source, sample.calibration, path, execution.backend)
    elif execution.precision == "fp16":
        fp16_from_onnx(source, sample.calibration, path)
        check_overflow(name, overflow_audit(source, path, sample.calibration))
    else:
        # OpenVINO rounds the FP32 graph to BF16 when it compiles it.
        path = source
    return Artefact(name, execution.precision, execution.backend, path, has_novelty)


def choose_fastest(choice: MemberChoice, notes: list[str]) -> MemberChoice:
    """Choose the fastest candidate that passes; FP32 unless another is clearly faster."""
    times = {execution: one.latency_ms or 0.0 for execution, one in choice.candidates.items()}
    best = min((execution for execution, one in choice.candidates.items() if one.parity.passed), key=times.__getitem__)
    reference = next(iter(times))
    if reference.precision == "fp32" and times[reference] < _WORTH * times[best]:
        best = reference
    timings = ", ".join(f"{execution} {time:.1f} ms" for execution, time in times.items())
    failed = [
        f"{execution} exceeds its budget: {'; '.join(one.parity.faults)}"
        for execution, one in choice.candidates.items()
        if not one.parity.passed
    ]
    return replace(choice, taken=best, reason="; ".join([f"the fastest that passes ({timings})", *failed, *notes]))


def _choose_fp16(choice: MemberChoice, notes: list[str]) -> MemberChoice:
    """Choose FP16 if it passes; GPUs multiply it fastest, and the exporting machine may have no GPU to measure on."""
    reference, fp16 = EXECUTIONS["gpu"]
    half = choice.candidates.get(fp16)
    if half is not None and half.parity.passed:
        return replace(choice, taken=fp16, reason="FP16 passes; its speed is not measured here")
    faults = [] if half is None else [f"fp16 exceeds its budget: {'; '.join(half.parity.faults)}"]
    return replace(choice, taken=reference, reason="; ".join([*faults, *notes]))


def original_verdict(rule: VotingRule, choices: list[MemberChoice], fitted: OutlierTest | None) -> Verdict:
    """Return the vote over the PyTorch models.

    Args:
        rule: Voting rule.
        choices: Choices of all members, in the order of the rule.
        fitted: Outlier test with PyTorch's reference, which replaces the rule's; None tests no outliers.
    """
    novelty = [choice.original_novelty for choice in choices] if fitted else ()
    return verdict_from_members([choice.original for choice in choices], replace(rule, outliers=fitted), novelty)
