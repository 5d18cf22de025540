"""Evaluate a fitted run, with predictions of PyTorch or of a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from plurum.errors import DataError, MetadataError, SettingsError
from plurum.files import sha256_of
from plurum.predictions.arrays import Bytes
from plurum.run import Run, Table, number_patients
from plurum.settings.training import EvaluationSettings
from plurum.spec import Ensemble
from plurum.training.evaluation.corruptions import corrupt_blocks, corruption_ways
from plurum.training.evaluation.evaluate import evaluate_predictions
from plurum.training.evaluation.robustness import figures_from_corrupted
from plurum.training.evaluation.subject import EvaluationSubject, SplitPredictions
from plurum.training.inference.predictions import MemberPredictions, decide_blocks, predict_outputs
from plurum.training.progress import show_progress
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.cascades import score_cascade
from plurum.training.statistics.results import CascadeScores, Evaluation
from plurum.voting import Verdict, cascade_from_ensemble, decide, decide_cascade

__all__ = [
    "EvaluatedSplit",
    "corrupt_split",
    "evaluate_run",
    "evaluate_verdicts",
    "required_splits",
    "subject_from_ensemble",
]

EvaluatedSplit = Literal["validation", "test"]
_MOST_GROUPS = 50


def required_splits(settings: EvaluationSettings) -> tuple[EvaluatedSplit, ...]:
    """Return the splits that need predictions: the split to evaluate, and validation, which chooses the best member."""
    return ("validation",) if settings.split == "validation" else ("validation", settings.split)


def evaluate_run(path: Path, settings: EvaluationSettings) -> Evaluation:
    """Evaluate the run's ensemble, with the members' predictions computed by PyTorch.

    Raises:
        MetadataError: the folder is not a run, is not fitted, was fitted on other data, or has an invalid member.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm, safetensors, scikit-learn or SciPy is not installed.
    """
    run = Run(path)
    ensemble = run.ensemble()
    outputs = predict_outputs(run, ensemble, required_splits(settings))
    verdicts = {split: decide(one.probabilities, ensemble.rule, one.novelty) for split, one in outputs.items()}
    subject = subject_from_ensemble(ensemble, "PyTorch", tuple(member.name for member in ensemble.members))
    corrupted = None
    if settings.corruptions:
        blocks, number = corrupt_split(run, settings)
        corrupted = decide_blocks(run, ensemble, blocks, number, "corrupted images")
    found = evaluate_verdicts(run, subject, verdicts, settings, corrupted)
    scores = _score_cascade(run, ensemble, outputs[settings.split], verdicts[settings.split], settings)
    return found.model_copy(update={"cascade": scores})


def _score_cascade(
    run: Run, ensemble: Ensemble, outputs: MemberPredictions, whole: Verdict, settings: EvaluationSettings
) -> CascadeScores | None:
    """Return the figures of the cascade on the evaluated split; None without one."""
    cascade = cascade_from_ensemble(ensemble.model_dump())
    if cascade is None or ensemble.cascade is None:
        return None
    table = run.table()
    rows = table.rows(settings.split)
    bootstrap = Bootstrap(number_patients([table.patients[row] for row in rows]), settings.draws, settings.seed)
    found = decide_cascade(outputs.probabilities, cascade, outputs.novelty)
    return score_cascade(found, whole, ensemble.cascade, table.labels[rows], bootstrap)


def corrupt_split(run: Run, settings: EvaluationSettings) -> tuple[Iterator[Bytes], int]:
    """Return blocks of the evaluated split's images, corrupted in every way, and the number of these images."""
    rows = run.table().rows(settings.split)
    return corrupt_blocks(run.pixels(), rows, settings.seed), len(rows) * len(corruption_ways())


def subject_from_ensemble(
    ensemble: Ensemble, answered_by: str, members: tuple[str, ...], notes: tuple[str, ...] = ()
) -> EvaluationSubject:
    """Return the ensemble to evaluate.

    Args:
        ensemble: Contents of `ensemble.json`.
        answered_by: Source of the predictions: `PyTorch`, or the server's address.
        members: Names of the members that predicted; a server may have other members than `ensemble`.
        notes: Remarks on the predictions, one sentence each.
    """
    if ensemble.voting.prior_ratio is not None:
        times = zip(ensemble.classes, ensemble.voting.prior_ratio, strict=True)
        said = ", ".join(f"{name} {ratio:.2f} times as often" for name, ratio in times)
        note = (
            f"The vote is corrected for other class frequencies than those of these images ({said}). The figures are "
            f"for these images, on which the uncorrected vote would be better."
        )
        notes = (*notes, note)
    return EvaluationSubject(
        name=ensemble.name,
        classes=ensemble.classes,
        members=members,
        answered_by=answered_by,
        alpha=None if ensemble.conformal is None else ensemble.conformal.alpha,
        review=ensemble.review,
        prior_ratio=ensemble.voting.prior_ratio,
        patient_rule=ensemble.patient_rule,
        positive=None if ensemble.operating_point is None else ensemble.operating_point.positive,
        notes=notes,
        rule=ensemble.rule,
    )


def evaluate_verdicts(
    run: Run,
    subject: EvaluationSubject,
    verdicts: Mapping[EvaluatedSplit, Verdict],
    settings: EvaluationSettings,
    corrupted: Verdict | None = None,
) -> Evaluation:
    """Evaluate verdicts on the run's images.

    Args:
        run: Run with labels and patients.
        subject: Ensemble that gave the verdicts.
        verdicts: Verdicts for each of `required_splits`, in the order of the run's table.
        settings: Options of the evaluation.
        corrupted: Verdict on the images of `corrupt_split`; None evaluates no corruptions.

    Raises:
        MetadataError: the ensemble was fitted on other data than the run holds.
        DataError: a split has no image.
        SettingsError: the positive class or a column is unknown, or a prevalence is stated without a positive class.
    """
    ensemble = run.ensemble()
    subject = replace(subject, positive=_positive_class(subject, settings))
    if ensemble.data.fingerprint != run.data().fingerprint:
        raise MetadataError(f"{run.ensemble_file} was fitted on other images than {run.data_folder} holds; fit again")
    table = run.table()
    _check_columns(table, settings)
    evaluated = {}
    for split, verdict in verdicts.items():
        rows = table.rows(split)
        if not len(rows):
            raise DataError(f"{run.path} has no {split} images; train on data with some")
        columns = {name: [table.columns[name][row] for row in rows] for name in settings.by}
        patients = [table.patients[row] for row in rows]
        evaluated[split] = SplitPredictions(verdict, table.labels[rows], patients, columns)
    checked: dict[str, Verdict] = dict(verdicts.items())
    if corrupted is not None:
        checked["corrupted"] = corrupted
    for name, verdict in checked.items():
        if not (np.isfinite(verdict.probabilities).all() and np.isfinite(verdict.member_probabilities).all()):
            raise DataError(f"{subject.answered_by} returns NaN for {name} images, which can't be evaluated")
    subject = replace(subject, notes=(*subject.notes, *_left_out(run, ensemble)))
    with show_progress("evaluating", len(subject.members) + 2) as progress:
        found = evaluate_predictions(subject, evaluated[settings.split], evaluated["validation"], settings, progress)
    figures = () if corrupted is None else figures_from_corrupted(evaluated[settings.split], corrupted, settings)
    return found.model_copy(update={"corruptions": figures, "ensemble_sha256": sha256_of(run.ensemble_file)})


def _check_columns(table: Table, settings: EvaluationSettings) -> None:
    for name in settings.by:
        if name not in table.columns:
            known = ", ".join(table.columns) or "none, because the run was not trained on a manifest with other columns"
            raise SettingsError(f"--by: expected a column of the manifest ({known}), got {name!r}. Name one of them.")
        if (number := len(set(table.columns[name]))) > _MOST_GROUPS:
            raise SettingsError(
                f"--by: expected a column with at most {_MOST_GROUPS} different values, got {number:,} in {name}. Put "
                f"numbers into classes first."
            )


def _positive_class(subject: EvaluationSubject, settings: EvaluationSettings) -> str | None:
    """Return the positive class: that of the settings, else that of the ensemble."""
    positive = settings.positive or subject.positive
    if positive is not None and positive not in subject.classes:
        raise SettingsError(
            f"--positive: expected one of the classes {', '.join(subject.classes)}, got {positive!r}. Name a class."
        )
    if settings.prevalence is not None and positive is None:
        raise SettingsError(
            f"--prevalence: expected together with --positive. Add --positive with the class that it is the prevalence "
            f"of: {', '.join(subject.classes)}."
        )
    return positive


def _left_out(run: Run, ensemble: Ensemble) -> tuple[str, ...]:
    """Return a note on the run's members that are not in its ensemble, if any."""
    kept = {member.name for member in ensemble.members}
    said = []
    for member in run.members():
        if member.name not in kept:
            scores = member.validation
            known = f" (on validation images: accuracy {scores.accuracy:.4f}, NLL {scores.nll:.4f})" if scores else ""
            said.append(f"{member.name}{known}")
    return (f"Not in the vote, so not evaluated: {', '.join(said)}.",) if said else ()
