"""Certify a fit's promise with the predictions of the graphs that will serve.

The fit tested its review limits with PyTorch's predictions. A graph in INT8 may change as many reviews as the promise
allows errors, so the limits are listed and tested again: the same code, on the same certification patients, with the
exported graphs. A further export of other graphs is a further look at these patients, as is a further fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plurum.errors import CertificationError, needs_extra
from plurum.export.graphs.fused import fused_from_onnx, verdict_from_fused
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.repository.parity import verdict_from_members
from plurum.export.settings import BUDGETS, Backend, ExportSettings
from plurum.predictions.arrays import Floats, Ints
from plurum.promises.review import (
    ReviewAnswers,
    ReviewTarget,
    ReviewTest,
    certify_limit,
    interval_from_limit,
    rule_without_limit,
)
from plurum.run import Split, Table, UnlabelledImages, number_patients
from plurum.spec import Ensemble, OutlierRule, ReviewPromise
from plurum.voting import Verdict, VotingRule, softmax

__all__ = [
    "CertificationImages",
    "LabelledRows",
    "ServedGraphs",
    "certification_images",
    "certify_ensemble",
    "refuse_promise",
    "target_from_promise",
    "with_limit",
    "with_provisional_promise",
]


@dataclass(frozen=True)
class LabelledRows:
    """Images of one split of a run.

    Attributes:
        rows: Indices of the images, int64 `[images]`.
        labels: True classes, int64 `[images]`.
        groups: Group of each image, int64 `[images]`; images of one patient share a group.
    """

    rows: Ints
    labels: Ints
    groups: Ints


@dataclass(frozen=True)
class CertificationImages:
    """Images that certify a promise.

    Attributes:
        pixels: All images of the run, uint8 `[images, height, width, 3]`.
        validation: All validation images, which choose the review limits to test.
        certification: All certification images, which choose nothing else.
        unlabelled: Images of further patients, which certify a cascade; None without any.
    """

    pixels: npt.NDArray[np.uint8]
    validation: LabelledRows
    certification: LabelledRows
    unlabelled: UnlabelledImages | None = None


@dataclass(frozen=True)
class ServedGraphs:
    """Graphs whose predictions a promise is about.

    Attributes:
        artefacts: Artefacts of the members, in the order of the ensemble.
        fused: Backend of the fused graph, which also serves; None without one.
        folder: Folder for temporary files.
        fused_rule: Outlier rule of the fused graph, if its members compute in another precision than those that serve
            alone; None if it has the ensemble's.
    """

    artefacts: Sequence[Artefact]
    fused: Backend | None
    folder: Path
    fused_rule: OutlierRule | None = None


class _Votes(NamedTuple):
    """Outputs of the members: probabilities, `[images, classes]`, and novelty, `[images]`, of each."""

    probabilities: list[Floats]
    novelty: list[npt.NDArray[Any] | None]

    def verdict(self, rule: VotingRule) -> Verdict:
        return verdict_from_members(self.probabilities, rule, self.novelty if rule.outliers else ())


def certification_images(
    table: Table, pixels: npt.NDArray[np.uint8], unlabelled: UnlabelledImages | None = None
) -> CertificationImages | None:
    """Return the images that certify a promise; None if no patient was set aside."""

    def labelled(split: Split) -> LabelledRows:
        rows = table.rows(split)
        return LabelledRows(rows, table.labels[rows], number_patients([table.patients[row] for row in rows]))

    if "certification" not in table.splits:
        return None
    return CertificationImages(pixels, labelled("validation"), labelled("certification"), unlabelled)


def certify_ensemble(
    ensemble: Ensemble,
    graphs: ServedGraphs,
    images: CertificationImages | None,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> Ensemble:
    """Return the ensemble with the review limit that its served graphs certify.

    Without a promise, it is returned as it is. The promise stays provisional without certification images, and for
    TensorRT, whose plans another machine builds and runs.

    Raises:
        CertificationError: the served graphs do not keep the promise.
        MissingExtraError: SciPy is not installed.
    """
    promise = ensemble.promise
    if promise is None or settings.without_promise:
        return ensemble.with_promise(None)
    if images is None or settings.target == "gpu":
        return with_provisional_promise(ensemble)
    with needs_extra("export", "scipy"):
        pass
    target = target_from_promise(ensemble, promise)
    known, certifying = _member_votes(graphs, images, progress)
    rule = rule_without_limit(ensemble.rule)

    def answers(verdict: Verdict, of: LabelledRows) -> ReviewAnswers:
        return ReviewAnswers.from_verdict(verdict, of.labels, of.groups, rule, target)

    new = [answers(certifying.verdict(rule), images.certification)]
    if graphs.fused is not None:
        progress("ensemble_fused: predictions for certification images")
        new.append(answers(_fused_verdict(ensemble, graphs, images), images.certification))
    found = certify_limit(answers(known.verdict(rule), images.validation), new, target)
    if found.limit is None or found.promise is None:
        raise refuse_promise(found, promise, graphs)
    return _with_baseline(with_limit(ensemble, found.limit, found.promise), ensemble, known)


def target_from_promise(ensemble: Ensemble, promise: ReviewPromise) -> ReviewTarget:
    """Return the target of a promise that the ensemble states."""
    risk = None if promise.method == "bound" else promise.risk
    point = ensemble.operating_point if promise.decision else None
    return ReviewTarget(risk, promise.confidence, point, ensemble.classes if promise.by_class else ())


def with_provisional_promise(ensemble: Ensemble) -> Ensemble:
    """Return the ensemble for graphs that certified nothing: promises that it states are provisional."""
    promise, cascade = ensemble.promise, ensemble.cascade
    if promise is not None:
        ensemble = ensemble.with_promise(promise.model_copy(update={"status": "provisional"}))
    if cascade is None or cascade.promise is None:
        return ensemble
    known = cascade.promise.model_copy(update={"status": "provisional", "precision": None})
    return ensemble.with_cascade(cascade.with_promise(known))


def _member_votes(
    graphs: ServedGraphs, images: CertificationImages, progress: Callable[[str], None]
) -> tuple[_Votes, _Votes]:
    """Return the members' outputs for validation and for certification images."""
    rows = np.concatenate([images.validation.rows, images.certification.rows])
    known, certifying = _Votes([], []), _Votes([], [])
    parts = (known, slice(0, len(images.validation.rows))), (certifying, slice(len(images.validation.rows), None))
    for artefact in graphs.artefacts:
        progress(f"{artefact.member}: {artefact.execution} on {len(rows):,} validation and certification images")
        outputs = outputs_from_artefact(artefact, images.pixels, rows)
        for votes, part in parts:
            votes.probabilities.append(softmax(outputs.logits[part]))
            votes.novelty.append(None if outputs.novelty is None else outputs.novelty[part])
    return known, certifying


def _fused_verdict(ensemble: Ensemble, graphs: ServedGraphs, images: CertificationImages) -> Verdict:
    """Return the verdict of the fused graph on certification images, without a review limit."""
    path = graphs.folder / "certified.fused.onnx"
    members = [artefact.path for artefact in graphs.artefacts]
    fused = ensemble if graphs.fused_rule is None else ensemble.with_outliers(graphs.fused_rule)
    fused_from_onnx(members, rule_without_limit(fused.rule), len(ensemble.classes), path)
    return verdict_from_fused(path, images.pixels, graphs.fused or "onnxruntime", images.certification.rows)


def with_limit(ensemble: Ensemble, limit: float, promise: ReviewPromise) -> Ensemble:
    """Return the ensemble with a review limit and the promise that served graphs certified for it."""
    point, threshold = ensemble.operating_point, limit
    if point is not None and point.positive is not None:
        point = point.model_copy(update={"review_interval": interval_from_limit(point, limit)})
        threshold = ensemble.review.threshold
    review = ensemble.review.model_copy(update={"threshold": threshold, "risk": promise.risk})
    changed = ensemble.model_copy(update={"operating_point": point, "review": review})
    return changed.with_promise(promise.model_copy(update={"status": "certified"}))


def _with_baseline(certified: Ensemble, ensemble: Ensemble, known: _Votes) -> Ensemble:
    """Move the drift baseline's fraction of reviews as far as the limit moves it among validation images."""
    if ensemble.baseline is None:
        return certified
    before, after = (known.verdict(one.rule).review.mean() for one in (ensemble, certified))
    share = float(np.clip(ensemble.baseline.review_share + after - before, 0.0, 1.0))
    baseline = ensemble.baseline.model_copy(update={"review_share": share})
    return certified.model_copy(update={"baseline": baseline})


def refuse_promise(found: ReviewTest, promise: ReviewPromise, graphs: ServedGraphs) -> CertificationError:
    """Return the error that served graphs don't keep the promise of the fit."""
    precision = max((one.precision for one in graphs.artefacts), key=[*BUDGETS].index)
    finer = "" if precision == "fp32" else "choose --precision fp32, "
    about = {"precision": precision, "is_fused": graphs.fused is not None, "promise": found.refused}
    return CertificationError(
        f"the {precision.upper()} graphs don't keep the promise of plurum fit ({promise.errors:g} errors in "
        f"{promise.patients:,} patients): {found.refusal}. Nothing was written. To export, {finer}fit with a larger "
        f"--risk, or give up the promise: --without-promise",
        refused=about,
    )
