"""Join the members' chosen graphs and their vote into the fused graph of a repository."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.export.graphs.fused import verdict_from_fused, verdict_from_outputs
from plurum.export.graphs.runtimes import Artefact, openvino_runner
from plurum.export.graphs.stages import outputs_of_stages
from plurum.export.manifest import PublishedGraph
from plurum.export.repository.configs import FUSED, LABELS, has_stage_models, stage_models, stage_paths
from plurum.export.repository.model_folders import add_fused_models, state_precisions
from plurum.export.repository.outlier_reference import with_served_reference
from plurum.export.repository.parity import Parity, check_parity, stack_novelty, vote_parity
from plurum.export.repository.selection import MemberChoice, ParitySample
from plurum.export.settings import BUDGETS, Backend, Execution, ExportSettings, Precision
from plurum.files import sha256_of
from plurum.spec import LOGITS, Ensemble, OutlierRule
from plurum.voting import Verdict, cascade_from_ensemble, decide, softmax

__all__ = ["artefacts_inside", "fuse_choices", "fused_backend", "fused_rule", "published_from_file", "stage_parities"]


_log = logging.getLogger(__name__)

# Batches of four, two and one, which OpenVINO has compiled graphs for.
_COMPARED = 7


def published_from_file(
    repository: Path, model: str, precision: Precision, backend: Backend, reason: str
) -> PublishedGraph:
    """Return the manifest's entry of a model's graph in the repository."""
    path = repository / model / "1" / "model.onnx"
    return PublishedGraph(
        model=model,
        file=str(path.relative_to(repository)),
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        precision=precision,
        backend=backend,
        reason=reason,
        latency_ms={},
    )


def fused_backend(choices: list[MemberChoice], settings: ExportSettings, pixels: npt.NDArray[np.uint8]) -> Backend:
    """Return the backend that serves the fused graph.

    OpenVINO computes FP32 members if it is installed, because it is usually faster, and if it computes each of them as
    ONNX Runtime does. It does not know all operators of added ONNX graphs.

    Args:
        choices: Graphs of the members.
        settings: Settings of the export.
        pixels: Images of the choices' probabilities, uint8 `[images, height, width, 3]`.
    """
    if settings.target == "gpu":
        return "tensorrt"
    # ONNX Runtime would run graphs that were quantised for OpenVINO in FP32.
    taken = {choice.taken for choice in choices}
    if Execution("int8", "openvino") in taken:
        return "openvino"
    is_offered = not settings.without_openvino and importlib.util.find_spec("openvino") is not None
    if Execution("int8", "onnxruntime") in taken or not is_offered:
        return "onnxruntime"
    return (
        "openvino" if all(_openvino_agrees(choice, pixels, settings.tolerance) for choice in choices) else "onnxruntime"
    )


def _openvino_agrees(choice: MemberChoice, pixels: npt.NDArray[np.uint8], tolerance: float) -> bool:
    """Return True if OpenVINO computes the member's FP32 graph as ONNX Runtime does."""
    fp32 = next(iter(choice.candidates.values()))
    some = np.array(pixels[:_COMPARED])
    try:
        (logits,) = openvino_runner(fp32.artefact.path, [LOGITS])(some)
    except RuntimeError as error:
        _log.warning("%s: ONNX Runtime serves the fused graph, because OpenVINO can't: %.200s", choice.member, error)
        return False
    return bool(np.abs(softmax(logits) - fp32.probabilities[: len(some)]).max() <= tolerance)


def _precisions_inside(choices: list[MemberChoice]) -> list[Precision]:
    """Return the precision of each member in the fused graph.

    OpenVINO rounds a whole graph to BF16 when it compiles it, and the vote needs FP32: use the FP32 graph instead.
    """
    return ["fp32" if choice.taken.precision == "bf16" else choice.taken.precision for choice in choices]


def artefacts_inside(choices: list[MemberChoice]) -> list[Artefact]:
    """Return the members' artefacts in the precisions in which the fused graph computes them."""
    return [
        replace(choice.candidate.artefact, precision=inside)
        for choice, inside in zip(choices, _precisions_inside(choices), strict=True)
    ]


def fused_rule(
    tested: Ensemble, choices: list[MemberChoice], sample: ParitySample, progress: Callable[[str], None]
) -> OutlierRule | None:
    """Return the outlier rule of the fused graph if its members compute in another precision; None if they don't."""
    artefacts = artefacts_inside(choices)
    if all(one.precision == choice.taken.precision for one, choice in zip(artefacts, choices, strict=True)):
        return None
    return with_served_reference(tested, artefacts, sample.reference, progress).outliers


def fuse_choices(
    ensemble: Ensemble,
    choices: list[MemberChoice],
    checked: tuple[Verdict, ParitySample],
    settings: ExportSettings,
    repository: Path,
    backend: Backend,
    rule: OutlierRule | None,
) -> tuple[list[PublishedGraph], Parity]:
    """Add the fused graph to the repository; return its graphs and the parity of the whole vote.

    Args:
        ensemble: Ensemble that is served.
        choices: Graphs of the members.
        checked: Verdict of the PyTorch models, and the images that it is about.
        settings: Settings of the export.
        repository: The repository.
        backend: Backend that serves the fused graph.
        rule: Outlier rule of the fused graph; None if it is the ensemble's.

    Raises:
        ParityError: the fused graph differs from PyTorch by more than its budget.
    """
    inside, (original, sample) = _precisions_inside(choices), checked
    graph_rule = ensemble.rule if rule is None else ensemble.with_outliers(rule).rule
    precision = max(inside, key=[*BUDGETS].index)
    graphs = [choice.candidate.artefact.path for choice in choices]
    path = add_fused_models(ensemble, graphs, repository, settings.max_batch_size, backend, graph_rule)
    names = (choice.member for choice in choices)
    state_precisions(repository / LABELS / "1", dict(zip(names, inside, strict=True)))
    are_models = has_stage_models(ensemble, backend)
    if are_models:
        outputs = outputs_of_stages(stage_paths(ensemble, repository, backend), sample.pixels, backend)
        exported = verdict_from_outputs(outputs[-1])
    else:
        exported = verdict_from_fused(path, sample.pixels, backend)
    budget = settings.budget(precision)
    parity = vote_parity("ensemble_fused", precision, original, exported, sample.labels, budget, graph_rule)
    check_parity(parity)
    if are_models:
        return _published_stages(ensemble, choices, repository, backend), parity
    return [published_from_file(repository, FUSED, precision, backend, _reason(choices))], parity


def _published_stages(
    ensemble: Ensemble, choices: list[MemberChoice], repository: Path, backend: Backend
) -> list[PublishedGraph]:
    """Return the manifest's entries of stages that are models, each with the coarsest precision of its members."""
    cascade = ensemble.cascade
    if cascade is None:
        return []
    stops = [0, *(stage.members for stage in cascade.stages), len(choices)]
    published = []
    for name, (start, stop) in zip(stage_models(ensemble), pairwise(stops), strict=True):
        own = [choices[index] for index in cascade.order[start:stop]]
        precision = max(_precisions_inside(own), key=[*BUDGETS].index)
        published.append(published_from_file(repository, name, precision, backend, _reason(own)))
    return published


def _reason(choices: list[MemberChoice]) -> str:
    """Return the precision of each member inside a graph, in words."""
    inside = _precisions_inside(choices)
    return ", ".join(f"{choice.member} in {one}" for choice, one in zip(choices, inside, strict=True))


def stage_parities(
    fitted: Ensemble,
    served: Ensemble,
    choices: list[MemberChoice],
    sample: ParitySample,
    settings: ExportSettings,
    repository: Path,
    backend: Backend,
) -> list[Parity]:
    """Return the parity of each stage before the whole vote, over all images; none without a cascade.

    Args:
        fitted: Ensemble with the outlier references of the fit.
        served: Ensemble that is served.
        choices: Graphs of the members.
        sample: Images to check on.
        settings: Settings of the export.
        repository: The repository, with the graphs of the stages.
        backend: Backend that serves the stages.

    Raises:
        ParityError: a stage differs from PyTorch by more than its budget.
    """
    before, after = (cascade_from_ensemble(one.model_dump()) for one in (fitted, served))
    if before is None or after is None:
        return []
    precision = max(_precisions_inside(choices), key=[*BUDGETS].index)
    outputs = outputs_of_stages(stage_paths(served, repository, backend), sample.pixels, backend)
    members = np.stack([choice.original for choice in choices], axis=1)
    novelty = stack_novelty([choice.original_novelty for choice in choices]) if fitted.outliers else None
    parities = []
    for number, (known, stage, found) in enumerate(zip(before.stages, after.stages, outputs, strict=False), 1):
        own = list(stage.members)
        rule = replace(stage.rule, outliers=known.rule.outliers)
        original = decide(members[:, own], rule, None if novelty is None else novelty[:, own])
        verdict = verdict_from_outputs(found)
        exported = replace(verdict, member_probabilities=verdict.member_probabilities[:, own])
        budget = settings.budget(precision)
        parity = vote_parity(f"stage {number}", precision, original, exported, sample.labels, budget, stage.rule)
        check_parity(parity)
        parities.append(parity)
    return parities
