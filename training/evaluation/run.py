"""From a fitted run to its judgement, with the answers of PyTorch or of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from plurum.errors import ContractError, DataError
from plurum.run import Run
from plurum.spec import Ensemble
from plurum.training.evaluation.judge import Asked, JudgeSettings, Subject, judge
from plurum.training.inference.answers import member_answers
from plurum.training.progress import shown
from plurum.training.statistics.judgement import Judgement
from plurum.voting import Verdict, decide

__all__ = ["JudgedSplit", "judge_run", "judge_verdicts", "splits_to_ask", "subject_from_ensemble"]

JudgedSplit = Literal["validation", "test"]


def splits_to_ask(settings: JudgeSettings) -> tuple[JudgedSplit, ...]:
    """Return whose images need answers: those to be judged, and those by which the best single member is chosen."""
    return ("validation",) if settings.split == "validation" else ("validation", settings.split)


def judge_run(path: Path, settings: JudgeSettings) -> Judgement:
    """Return the judgement of the run's ensemble, with its members' answers computed by PyTorch.

    Raises:
        ContractError: the folder is no run, is not fitted, was fitted on other data, or has a broken member.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm, safetensors, scikit-learn or SciPy is not installed.
    """
    run = Run(path)
    ensemble = run.ensemble()
    answers = member_answers(run, ensemble.members, splits_to_ask(settings))
    verdicts = {split: decide(probabilities, ensemble.rule) for split, probabilities in answers.items()}
    subject = subject_from_ensemble(ensemble, "PyTorch", tuple(member.name for member in ensemble.members))
    return judge_verdicts(run, subject, verdicts, settings)


def subject_from_ensemble(
    ensemble: Ensemble, answered_by: str, members: tuple[str, ...], notes: tuple[str, ...] = ()
) -> Subject:
    """Return who is to be judged, by the ensemble's contract; a server may have other `members` than that."""
    if ensemble.voting.prior_ratio is not None:
        times = zip(ensemble.classes, ensemble.voting.prior_ratio, strict=True)
        said = ", ".join(f"{name} {ratio:.2f} times as often" for name, ratio in times)
        note = (
            f"The vote is corrected for classes that come in other shares than here ({said}); the figures are of these "
            f"images as they come, on which it would do better uncorrected."
        )
        notes = (*notes, note)
    return Subject(
        name=ensemble.name,
        classes=ensemble.classes,
        members=members,
        answered_by=answered_by,
        alpha=None if ensemble.conformal is None else ensemble.conformal.alpha,
        review=ensemble.review,
        prior_ratio=ensemble.voting.prior_ratio,
        patient_rule=ensemble.patient_rule,
        notes=notes,
    )


def judge_verdicts(
    run: Run, subject: Subject, verdicts: Mapping[JudgedSplit, Verdict], settings: JudgeSettings
) -> Judgement:
    """Return the judgement of `verdicts` on the run's images, whoever gave them.

    Args:
        run: Whose labels and patients are the truth.
        subject: Who answered.
        verdicts: For each of `splits_to_ask`, one per image, in the order of the run's table.
        settings: How to judge.

    Raises:
        ContractError: the ensemble was fitted on other data than the run holds.
        DataError: a split has no image.
    """
    ensemble = run.ensemble()
    if ensemble.data.fingerprint != run.data().fingerprint:
        raise ContractError(f"{run.ensemble_file} was fitted on other images than {run.data_folder} holds; fit again")
    table = run.table()
    asked = {}
    for split, verdict in verdicts.items():
        rows = table.rows(split)
        if not len(rows):
            raise DataError(f"{run.path} has no {split} images; train on data that has some")
        asked[split] = Asked(verdict, table.labels[rows], [table.patients[row] for row in rows])
        if not (np.isfinite(verdict.probabilities).all() and np.isfinite(verdict.member_probabilities).all()):
            raise DataError(f"{subject.answered_by} answers NaN to {split} images, which can't be judged")
    subject = replace(subject, notes=(*subject.notes, *_left_out(run, ensemble)))
    with shown("judging", len(subject.members) + 2) as progress:
        return judge(subject, asked[settings.split], asked["validation"], settings, progress)


def _left_out(run: Run, ensemble: Ensemble) -> tuple[str, ...]:
    """Return a note on the run's members that are not in its ensemble, if there are any."""
    kept = {member.name for member in ensemble.members}
    said = []
    for member in run.members():
        if member.name not in kept:
            scores = member.validation
            known = f" (on validation images: accuracy {scores.accuracy:.4f}, NLL {scores.nll:.4f})" if scores else ""
            said.append(f"{member.name}{known}")
    return (f"Not in the vote, and so not judged: {', '.join(said)}.",) if said else ()
