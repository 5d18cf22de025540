"""Content of a model card.

A card has no date and no path of the exporting machine, so that the same export gives the same card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from plurum import __version__
from plurum.export.manifest import PublishedGraph
from plurum.export.repository.cards.facts import CardFacts, FittedSplit, SplitCounts, SplitFigures
from plurum.export.repository.cards.intended_use import IntendedUse
from plurum.export.repository.parity import Parity
from plurum.export.repository.refusals import RefusedExport
from plurum.figures import PointScores, SiteFigures
from plurum.files import sha256_of
from plurum.run import Split
from plurum.sentences import point_text, review_condition
from plurum.spec import (
    CascadeRule,
    Ensemble,
    Metadata,
    OperatingPoint,
    PatientRule,
    RefusedPromise,
    ReviewPromise,
    Scores,
    Sha256,
    SiteCalibration,
    Voting,
    read_ensemble,
)

__all__ = ["CardMember", "ModelCard", "card_from_repository"]


class CardMember(Metadata):
    """Member of the ensemble as it was exported.

    Attributes:
        name: Name of the member.
        arch: Architecture.
        parameters: Number of weights.
        weight: Weight in the vote.
        checkpoint_sha256: SHA-256 of the trained weights.
        precision: Precision of the exported graph.
        backend: Backend that serves the graph.
        graph: Path of the graph in the repository.
    """

    name: str
    arch: str
    parameters: int
    weight: float
    checkpoint_sha256: Sha256
    precision: str
    backend: str
    graph: str


class ModelCard(Metadata):
    """Model card of an exported ensemble, stored in `model_card.json`.

    Attributes:
        version: Version of this format.
        name: Name of the ensemble.
        release: Release, as metrics name it.
        plurum: Version of Plurum that exported.
        use: Statements of the owner.
        classes: Class names, in the order of the outputs.
        data: Data source as given to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        splits: Images by split.
        members: Members as exported.
        voting: Vote of the members.
        site: Site that the vote was calibrated on; None if only on the run's images.
        operating_point: Decision that the labels state; None is the most probable class.
        decision: The decision in words.
        review: Condition for review in words.
        promise: Limit on the review risk of new patients; None promises nothing.
        promise_line: Result of the fit's certification in a sentence; None without certification patients.
        cascade: Stages at which images leave before all members have run; None without any.
        refused_promise: Certification that the fit refused; None without a refusal.
        refused_exports: Certifications that exports of this fit refused.
        coverage: Target coverage of the prediction sets; None without sets.
        patient_rule: Rule that combines the predictions of a patient's images; None if no patient is known.
        scores: Scores of the fit by split, without intervals.
        decisions: Figures of the fit at the operating point, by split; None without one, or if not known.
        figures: Figures by split, with intervals.
        calibration: Figures of the calibration at the site; None without one, or if not known.
        is_refitted: True if the export serves another vote or review rule than the fit, whose figures these are.
        parity: Differences between the exported graphs and PyTorch.
        checked_on: Images that they were compared on.
        files: SHA-256 of the metadata and the graphs, by path in the repository.
        missing: Sentences about what is not known.
        folds: Number of folds of the training images, of which each member left one out; None without.
    """

    version: Literal[1] = 1
    name: str
    release: str
    plurum: str
    use: IntendedUse
    classes: tuple[str, ...]
    data: str
    fingerprint: Sha256
    splits: dict[Split, SplitCounts]
    members: tuple[CardMember, ...]
    voting: Voting
    site: SiteCalibration | None
    operating_point: OperatingPoint | None
    decision: str
    review: str
    promise: ReviewPromise | None
    promise_line: str | None
    cascade: CascadeRule | None = None
    refused_promise: RefusedPromise | None = None
    refused_exports: tuple[RefusedExport, ...] = ()
    coverage: float | None
    patient_rule: PatientRule | None
    scores: dict[FittedSplit, Scores]
    decisions: dict[FittedSplit, PointScores] | None
    figures: tuple[SplitFigures, ...]
    calibration: SiteFigures | None = None
    is_refitted: bool
    parity: tuple[Parity, ...]
    checked_on: str
    files: dict[str, Sha256]
    missing: tuple[str, ...]
    folds: int | None = None


def card_from_repository(
    repository: Path, facts: CardFacts, artefacts: Sequence[PublishedGraph], parities: Sequence[Parity]
) -> ModelCard:
    """Return the model card of `repository`, whose `ensemble.json` is there already.

    Args:
        repository: Folder of the repository.
        facts: Facts that the run knows about the ensemble.
        artefacts: Graphs of the repository.
        parities: Differences between the graphs and PyTorch.
    """
    ensemble = read_ensemble(repository / "ensemble.json")
    hashes = {"ensemble.json": sha256_of(repository / "ensemble.json")}
    hashes |= {one.file: one.sha256 for one in artefacts}
    rule, point = ensemble.rule, ensemble.operating_point
    return ModelCard(
        name=ensemble.name,
        release=hashes["ensemble.json"][:12],
        plurum=__version__,
        use=facts.use,
        classes=ensemble.classes,
        data=ensemble.data.data,
        fingerprint=ensemble.data.fingerprint,
        splits=_splits(ensemble, facts),
        members=_members(ensemble, artefacts),
        voting=ensemble.voting,
        site=ensemble.site,
        operating_point=point,
        decision="the most probable class" if point is None else point_text(point),
        review=review_condition(rule, ensemble.classes) or _usual_condition(ensemble),
        promise=ensemble.promise,
        promise_line=facts.promise_line,
        cascade=ensemble.cascade,
        refused_promise=facts.refused_promise,
        refused_exports=facts.refused_exports,
        coverage=None if ensemble.conformal is None else 1 - ensemble.conformal.alpha,
        patient_rule=ensemble.patient_rule,
        scores=ensemble.scores,
        decisions=facts.decisions,
        figures=facts.figures,
        calibration=facts.calibration,
        is_refitted=facts.fitted is not None and facts.fitted.rule != rule,
        parity=tuple(parities),
        checked_on=facts.checked_on,
        files=hashes,
        missing=facts.missing,
        folds=facts.folds,
    )


def _usual_condition(ensemble: Ensemble) -> str:
    condition = f"a confidence below {ensemble.review.threshold:.4f}"
    return condition if ensemble.conformal is None else f"{condition}, or more than one class in the prediction set"


def _splits(ensemble: Ensemble, facts: CardFacts) -> dict[Split, SplitCounts]:
    if facts.splits is not None:
        return facts.splits
    return {
        split: SplitCounts(images=images, patients=None, by_class={}) for split, images in ensemble.data.images.items()
    }


def _members(ensemble: Ensemble, artefacts: Sequence[PublishedGraph]) -> tuple[CardMember, ...]:
    graphs = {one.model: one for one in artefacts}
    return tuple(
        CardMember(
            name=member.name,
            arch=member.arch,
            parameters=member.parameters,
            weight=weight,
            checkpoint_sha256=member.sha256,
            precision=graphs[member.name].precision,
            backend=graphs[member.name].backend,
            graph=graphs[member.name].file,
        )
        for member, weight in zip(ensemble.members, ensemble.voting.weights, strict=True)
    )
