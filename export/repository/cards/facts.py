"""Facts that a run knows about its ensemble, read from its data and its reports; what is missing is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from plurum.export.repository.cards.intended_use import IntendedUse, read_intended_use
from plurum.export.repository.refusals import RefusedExport, read_refusals
from plurum.figures import (
    Diagnosis,
    Estimate,
    GroupedFigures,
    PatientLevel,
    PointScores,
    PredictionSets,
    ReviewScores,
    SiteFigures,
)
from plurum.files import sha256_of
from plurum.regular_files import read_regular
from plurum.run import Run, Split, Table
from plurum.spec import Ensemble, Metadata, PatientRule, RefusedPromise

__all__ = ["CardFacts", "SplitCounts", "SplitFigures", "facts_from_run"]

FittedSplit = Literal["validation", "test"]
_USE_FILE = "intended_use.json"
_COMMANDS: dict[FittedSplit, str] = {
    "test": "plurum evaluate RUN",
    "validation": "plurum evaluate RUN --split validation --out RUN/report/validation",
}


class SplitCounts(Metadata):
    """Images of a split.

    Attributes:
        images: Number of images.
        patients: Number of patients; None if no patient is known.
        by_class: Number of images of each class; empty if unknown.
    """

    images: int
    patients: int | None
    by_class: dict[str, int]


class SplitFigures(Metadata):
    """Figures of the ensemble on one split, as `plurum evaluate` measured them with PyTorch.

    Attributes:
        split: Split of the images.
        images: Number of images.
        patients: Number of known patients.
        drawn: Unit of the bootstrap intervals.
        metrics: Figures of all predictions, by name.
        sets: Prediction sets.
        review: Predictions with and without review.
        patients_correct: Fraction of patients with a correct prediction, by `patient_rule`; None if unknown.
        patient_rule: Rule that combines the predictions of a patient's images.
        prevalence: Stated fraction of the positive class where the ensemble serves; None if none is stated.
        diagnoses: Figures of the decision for each positive class, without decision curves.
        by_group: Figures by group, for each column that was evaluated.
        notes: Remarks of the evaluation, one sentence each.
    """

    split: FittedSplit
    images: int
    patients: int
    drawn: Literal["patients", "images"]
    metrics: dict[str, Estimate]
    sets: PredictionSets
    review: ReviewScores
    patients_correct: Estimate | None
    patient_rule: PatientRule | None
    prevalence: float | None
    diagnoses: tuple[Diagnosis, ...]
    by_group: tuple[GroupedFigures, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CardFacts:
    """Content of a model card that does not depend on the export.

    Attributes:
        use: Statements of the owner.
        fitted: Ensemble of the run, which the figures are of; None without a run.
        splits: Images by split; None if unknown.
        decisions: Figures of the operating point by split, from the fit.
        promise_line: Result of the fit's certification in a sentence; None without certification patients.
        refused_promise: Certification that the fit refused; None without a refusal.
        refused_exports: Certifications that exports of this fit refused.
        calibration: Report of the calibration at the site; None without one, or if not known.
        figures: Figures by split.
        missing: Sentences about what is not known, with the command that finds it out.
        checked_on: Images that the exported graphs are compared with PyTorch on.
        folds: Number of folds that the members left out in turn; None without folds, or if unknown.
    """

    use: IntendedUse = field(default_factory=IntendedUse)
    fitted: Ensemble | None = None
    splits: dict[Split, SplitCounts] | None = None
    decisions: dict[FittedSplit, PointScores] | None = None
    promise_line: str | None = None
    refused_promise: RefusedPromise | None = None
    refused_exports: tuple[RefusedExport, ...] = ()
    calibration: SiteFigures | None = None
    figures: tuple[SplitFigures, ...] = ()
    missing: tuple[str, ...] = ()
    checked_on: str = "validation images of the run"
    folds: int | None = None


class _Report(BaseModel):
    # Reports have more keys than a card needs, and may come from another version.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class _FitReport(_Report):
    ensemble: Ensemble
    decisions: dict[FittedSplit, PointScores] | None = None
    promise_line: str | None = None
    refused_promise: RefusedPromise | None = None


class _Model(_Report):
    metrics: dict[str, Estimate]


class _Evaluation(_Report):
    ensemble_sha256: str | None = None
    answered_by: str
    split: FittedSplit
    images: int
    patients: int
    drawn: Literal["patients", "images"]
    judged: tuple[_Model, ...]
    sets: PredictionSets
    review: ReviewScores
    patient_level: PatientLevel | None
    patient_rule: PatientRule | None = None
    prevalence: float | None = None
    diagnoses: tuple[Diagnosis, ...] = ()
    by_group: tuple[GroupedFigures, ...] = ()
    notes: tuple[str, ...]


class _Calibration(SiteFigures, _Report):
    ensemble: Ensemble


_R = TypeVar("_R", bound=_Report)


def facts_from_run(run: Run, intended_use: Path | None = None, site: str | None = None) -> CardFacts:
    """Return what the run's data and reports say about its ensemble.

    Reports of another ensemble, such as that of an earlier fit, are not used, and named as missing.

    Args:
        run: Fitted run.
        intended_use: File with the owner's statements; by default `intended_use.json` of the run, if it exists.
        site: Site at which the ensemble was calibrated; only the figures of its calibration are known there. None
            takes the run's own.

    Raises:
        MetadataError: the run is not fitted, or its table is invalid.
        SettingsError: the owner's file is invalid.
    """
    ensemble, table = run.ensemble(site), run.table()
    own = run.path / _USE_FILE
    use_file = intended_use or (own if own.exists() else None)
    fit = _read_report(run.report_folder / "fit.json", _FitReport)
    if fit is not None and fit.ensemble != ensemble:
        fit = None
    calibration = None if site is None else _read_calibration(run, site, ensemble)
    figures = {} if site is not None else {one.split: one for one in reversed(list(_evaluations(run)))}
    is_same_data = run.data().fingerprint == ensemble.data.fingerprint
    missing = [] if is_same_data else ["Images by class: RUN/data holds other images than the ensemble was fitted on."]
    if site is None:
        missing += [
            f"Figures on {split} images with intervals: run {_COMMANDS[split]}, then export again."
            for split in _COMMANDS
            if split not in figures
        ]
        missing += _missing_groups(table, figures.get("test"))
    elif calibration is None:
        missing.append(
            f"Figures at the site: run plurum calibrate RUN --on SITE.csv --name {site}, then export again; those of "
            f"the run do not hold there."
        )
    return CardFacts(
        use=IntendedUse() if use_file is None else read_intended_use(use_file),
        fitted=ensemble,
        splits=_count_splits(table, ensemble.classes) if is_same_data else None,
        decisions=None if fit is None else fit.decisions,
        promise_line=None if fit is None else fit.promise_line,
        refused_promise=None if fit is None else fit.refused_promise,
        refused_exports=read_refusals(run) if site is None else (),
        calibration=calibration,
        figures=tuple(figures[split] for split in _COMMANDS if split in figures),
        missing=tuple(missing),
        folds=table.number_of_folds if is_same_data else None,
    )


def _read_report(path: Path, kind: type[_R]) -> _R | None:
    """Return a report; None if it is missing or can't be read, as a card then says that its figures are not known."""
    try:
        return kind.model_validate_json(read_regular(path))
    except (OSError, ValidationError):
        return None


def _read_calibration(run: Run, site: str, ensemble: Ensemble) -> SiteFigures | None:
    """Return the figures of the calibration that wrote this ensemble."""
    found = _read_report(run.site_folder(site) / "calibration.json", _Calibration)
    if found is None or found.ensemble != ensemble:
        return None
    return SiteFigures.model_validate({name: getattr(found, name) for name in SiteFigures.model_fields})


def _evaluations(run: Run) -> Iterator[SplitFigures]:
    """Yield the evaluations of this very ensemble by PyTorch, that of `RUN/report` first."""
    sha256 = sha256_of(run.ensemble_file)
    paths = [run.report_folder / "metrics.json", *sorted(run.report_folder.glob("*/metrics.json"))]
    for path in paths:
        found = _read_report(path, _Evaluation)
        # A server may serve another release, which its predictions don't show.
        if found is None or found.ensemble_sha256 != sha256 or found.answered_by != "PyTorch" or not found.judged:
            continue
        level = found.patient_level.by_rule.get("ensemble", {}) if found.patient_level else {}
        rule = found.patient_rule or "mean"
        yield SplitFigures(
            metrics=found.judged[0].metrics,
            patients_correct=level[rule].accuracy if rule in level else None,
            diagnoses=tuple(one.model_copy(update={"decision_curve": None}) for one in found.diagnoses),
            **{
                name: getattr(found, name)
                for name in SplitFigures.model_fields
                if name not in {"metrics", "patients_correct", "diagnoses"}
            },
        )


def _missing_groups(table: Table, test: SplitFigures | None) -> list[str]:
    if not table.columns:
        return ["Figures by group, such as site or scanner: the run's data have no column to group by."]
    seen = {one.column for one in test.by_group} if test else set()
    left = [name for name in table.columns if name not in seen]
    return [f"Figures by {', '.join(left)}: run plurum evaluate RUN --by COLUMN, then export again."] if left else []


def _count_splits(table: Table, classes: tuple[str, ...]) -> dict[Split, SplitCounts]:
    found: dict[Split, SplitCounts] = {}
    for split in get_args(Split):
        rows = table.rows(split).tolist()
        if rows:
            counts = Counter(table.labels[rows].tolist())
            patients = {table.patients[row] for row in rows} - {""}
            by_class = {name: counts[index] for index, name in enumerate(classes)}
            found[split] = SplitCounts(images=len(rows), patients=len(patients) or None, by_class=by_class)
    return found
