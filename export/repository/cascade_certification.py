"""Certify a cascade's exit, and the review limit with it, with the predictions of the graphs that will serve.

The graphs of the stages run on all validation and certification images, those that an exit would settle too: the same
test as in the fit, with the answers of the precision that is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from plurum.errors import CertificationError, needs_extra
from plurum.export.graphs.fused import verdict_from_outputs
from plurum.export.graphs.stages import outputs_of_stages, stages_from_onnx
from plurum.export.repository.certification import (
    CertificationImages,
    ServedGraphs,
    certify_ensemble,
    refuse_promise,
    target_from_promise,
    with_limit,
    with_provisional_promise,
)
from plurum.export.settings import BUDGETS, ExportSettings
from plurum.predictions.arrays import Ints
from plurum.predictions.outputs import LEAVE
from plurum.predictions.scores import confidence_of
from plurum.promises.cascades import (
    CascadeTarget,
    CascadeTest,
    StagedAnswers,
    cascade_without_limit,
    certify_cascade,
    cost_of_cascade,
    few_patients_text,
)
from plurum.spec import CascadePromise, CascadeRule, Ensemble
from plurum.voting import Cascade, cascade_from_ensemble

__all__ = ["certify_served"]


def certify_served(
    ensemble: Ensemble,
    graphs: ServedGraphs,
    images: CertificationImages | None,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> Ensemble:
    """Return the ensemble with the review limit and the exit that its served graphs certify.

    Without a cascade, see `certify_ensemble`. The promises stay provisional without certification images, and for
    TensorRT, whose plans another machine builds and runs.

    Raises:
        CertificationError: the served graphs do not keep a promise.
        MissingExtraError: SciPy is not installed.
    """
    rule = ensemble.cascade
    if rule is None:
        return certify_ensemble(ensemble, graphs, images, settings, progress)
    if settings.without_promise:
        return ensemble.with_promise(None).with_cascade(rule.with_promise(None))
    if images is None or rule.promise is None or settings.target == "gpu":
        return with_provisional_promise(ensemble)
    with needs_extra("export", "scipy"):
        pass
    promise = ensemble.promise
    seen, new, more = _answers(ensemble, graphs, images, progress)
    patients = sum(len(np.unique(one.groups)) for one in (new, *more))
    if few := few_patients_text(patients, rule.promise.risk, rule.promise.confidence):
        raise CertificationError(f"cascade: {few}. Nothing was written. Fit the run again")
    review = None if promise is None else target_from_promise(ensemble, promise)
    target = CascadeTarget(rule.promise.risk, rule.promise.confidence, ensemble.rule, review)
    found = certify_cascade(seen, [new], target, more)
    if promise is not None and found.review is not None:
        if found.review.limit is None or found.review.promise is None:
            raise refuse_promise(found.review, promise, graphs)
        ensemble = with_limit(ensemble, found.review.limit, found.review.promise)
    if found.leave is None or found.promise is None:
        raise _refuse_exit(found, rule.promise, graphs)
    served = ensemble.with_cascade(_with_exit(rule, found.leave, found.promise, new, graphs))
    return _with_baseline(served, seen, found)


def _answers(
    ensemble: Ensemble, graphs: ServedGraphs, images: CertificationImages, progress: Callable[[str], None]
) -> tuple[StagedAnswers, StagedAnswers, list[StagedAnswers]]:
    """Return the stages' answers for validation and certification images, and for unlabelled ones if there are any."""
    cascade = cascade_from_ensemble(ensemble.model_dump())
    if cascade is None:
        raise ValueError("expected a cascade")
    progress("cascade: predictions for validation and certification images")
    # Review limits are tested with the exits.
    run = _stages_runner(ensemble, cascade if ensemble.promise is None else cascade_without_limit(cascade), graphs)
    parts = images.validation, images.certification
    seen, new = (run(images.pixels, one.rows, one.labels, one.groups) for one in parts)
    if (extra := images.unlabelled) is None:
        return seen, new, []
    number = len(extra.groups)
    progress(f"cascade: predictions for {number:,} unlabelled images")
    return seen, new, [run(extra.pixels, np.arange(number), np.full(number, -1), extra.groups)]


def _stages_runner(
    ensemble: Ensemble, cascade: Cascade, graphs: ServedGraphs
) -> Callable[[npt.NDArray[np.uint8], Ints, Ints, Ints], StagedAnswers]:
    """Return a function that runs the stages' graphs: pixels, rows, labels and groups to the answers for the rows."""
    # At an exit of 0, LEAVE is the mask of images that leave if they are confident enough.
    stages = tuple(replace(stage, leave=0.0) for stage in cascade.stages)
    paths = [graphs.folder / f"certified.stage_{index}.onnx" for index in range(len(stages) + 1)]
    members = [artefact.path for artefact in graphs.artefacts]
    stages_from_onnx(members, Cascade(stages, cascade.rule), len(ensemble.classes), paths)

    def run(pixels: npt.NDArray[np.uint8], rows: Ints, labels: Ints, groups: Ints) -> StagedAnswers:
        first, *_, last = outputs_of_stages(paths, pixels, graphs.fused or "onnxruntime", rows)
        leaves = first[LEAVE][:, 0].astype(np.bool_)
        return StagedAnswers(verdict_from_outputs(last), verdict_from_outputs(first), leaves, labels, groups)

    return run


def _with_exit(
    rule: CascadeRule, leave: float, promise: CascadePromise, new: StagedAnswers, graphs: ServedGraphs
) -> CascadeRule:
    """Return the cascade with the exit that passed; share and cost are those of certification images."""
    (stage,), left = rule.stages, new.left(leave)
    early = sum(rule.costs[member] for member in rule.order[: stage.members])
    precision = max((one.precision for one in graphs.artefacts), key=[*BUDGETS].index)
    # BF16 members compute in FP32 in the graphs of the stages.
    certified = {"status": "certified", "precision": "fp32" if precision == "bf16" else precision}
    parts = {
        "stages": (stage.model_copy(update={"leave": leave, "share": float(left.mean())}),),
        "cost": cost_of_cascade(left, new.groups, early),
        "promise": promise.model_copy(update=certified),
    }
    return rule.model_copy(update=parts)


def _with_baseline(served: Ensemble, seen: StagedAnswers, found: CascadeTest) -> Ensemble:
    """Return the ensemble with the fraction of reviews that the graphs give for validation images."""
    if served.baseline is None:
        return served
    verdict, limit = seen.verdict(found.leave), found.review.limit if found.review else None
    is_reviewed = verdict.review | (confidence_of(verdict) < (limit or 0.0))
    baseline = served.baseline.model_copy(update={"review_share": float(is_reviewed.mean())})
    return served.model_copy(update={"baseline": baseline})


def _refuse_exit(found: CascadeTest, promise: CascadePromise, graphs: ServedGraphs) -> CertificationError:
    precision = max((one.precision for one in graphs.artefacts), key=[*BUDGETS].index)
    finer = "" if precision == "fp32" else "choose --precision fp32, "
    about = {"precision": precision, "is_fused": True, "promise": found.refused}
    return CertificationError(
        f"the {precision.upper()} graphs don't keep the promise of plurum fit on the cascade ({promise.hurt:,} of "
        f"{promise.patients:,} patients hurt): {found.refusal}. Nothing was written. To export, {finer}fit with a "
        f"larger --cascade-risk, or run all members for each image: --without-cascade",
        refused=about,
    )
