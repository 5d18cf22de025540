"""From finished members to an ensemble whose numbers are fitted on validation images."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from plurum.run import Run
from plurum.spec import Conformal, Ensemble, FittedOn, Member, Review, Scores, Voting, write_contract
from plurum.training.answers import member_answers
from plurum.training.calibration import (
    conformal_quantiles,
    fitted_temperature,
    fitted_weights,
    groups_of,
    improvement_interval,
    review_threshold,
)
from plurum.training.scoring import scores_of
from plurum.training.settings import FitSettings
from plurum.voting import Verdict, VotingRule, decide, soft_vote, temper

__all__ = ["FitReport", "fit_report", "fit_run"]

_LOG = logging.getLogger(__name__)

Judged = Literal["validation", "test"]
_JUDGED: tuple[Judged, ...] = ("validation", "test")
Floats = npt.NDArray[np.float64]


class FitReport(BaseModel):
    """What a fit found out.

    Attributes:
        ensemble: As it was written.
        members: Each member's scores, by name and split.
        weights_tried: What the members' weights would be if fitted; those taken are in the ensemble.
        nll_saved: 95 % interval of the validation NLL that these save against equal weights, nats.
        reviewed: By split: the share of answers that go to a person.
        covered: By split: the share of true classes that are in their prediction sets.
        best_alone: The member that answers test images best.
        beats_best: Whether the ensemble answers them better still.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: Ensemble
    members: dict[str, dict[Judged, Scores]]
    weights_tried: tuple[float, ...]
    nll_saved: tuple[float, float]
    reviewed: dict[Judged, float]
    covered: dict[Judged, float]
    best_alone: str
    beats_best: bool


def fit_run(run: Path, settings: FitSettings | None = None) -> Ensemble:
    """Fit how the members of the run vote, write its `ensemble.json` and return it; see `fit_report`."""
    return fit_report(run, settings or FitSettings()).ensemble


def fit_report(path: Path, settings: FitSettings) -> FitReport:
    """Fit how the members of the run `path` vote, write its `ensemble.json` and say what was found out.

    All is fitted on validation images; test images are only scored. In this order: weights (equal ones unless others
    are better beyond chance, and always for hard votes), temperature of the soft vote, prediction sets, review
    threshold.

    Raises:
        ContractError: the folder is no run, has no finished member, or a broken one.
        OutputError: `ensemble.json` can't be written.
        MissingExtraError: PyTorch, timm, safetensors or SciPy is not installed.
    """
    run = Run(path)
    members = run.members()
    table = run.table()
    answers = member_answers(run, members, _JUDGED)
    labels = {split: table.labels[table.rows(split)] for split in _JUDGED}
    groups = groups_of([table.patients[row] for row in table.rows("validation")])
    tried = fitted_weights(answers["validation"], labels["validation"])
    saved = improvement_interval(
        answers["validation"], labels["validation"], groups, tried, draws=settings.draws, seed=settings.seed
    )
    equal = np.full(len(members), 1 / len(members))
    weights = tried if settings.mode == "soft" and saved[0] > 0 else equal
    rule = _fitted_rule(answers["validation"], labels["validation"], groups, weights, settings)
    verdicts = {split: decide(answers[split], rule) for split in _JUDGED}
    ensemble = _ensemble(run, members, rule, settings, verdicts, labels)
    alone = {
        member.name: {split: scores_of(answers[split][:, index], labels[split]) for split in _JUDGED}
        for index, member in enumerate(members)
    }
    write_contract(run.ensemble_file, ensemble)
    rank = {member.name: _rank(answers, labels, index) for index, member in enumerate(members)}
    best_alone = min(rank, key=rank.__getitem__)
    return FitReport(
        ensemble=ensemble,
        members=alone,
        weights_tried=tuple(tried.tolist()),
        nll_saved=saved,
        reviewed={split: float(verdict.review.mean()) for split, verdict in verdicts.items()},
        covered={split: _covered(verdicts[split], labels[split]) for split in _JUDGED},
        best_alone=best_alone,
        beats_best=(-ensemble.scores["test"].accuracy, ensemble.scores["test"].nll) < rank[best_alone],
    )


def _fitted_rule(
    answers: Floats,
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    weights: Floats,
    settings: FitSettings,
) -> VotingRule:
    soft = settings.mode == "soft"
    rule = VotingRule(
        weights=tuple(weights.tolist()),
        mode=settings.mode,
        temperature=fitted_temperature(soft_vote(answers, weights), labels) if soft else 1.0,
    )
    verdict = decide(answers, rule)
    confidence = np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]
    return VotingRule(
        weights=rule.weights,
        mode=rule.mode,
        temperature=rule.temperature,
        quantiles=conformal_quantiles(verdict.probabilities, labels, groups, settings.alpha),
        review_threshold=review_threshold(confidence, verdict.label != labels, settings.risk),
    )


def _ensemble(
    run: Run,
    members: tuple[Member, ...],
    rule: VotingRule,
    settings: FitSettings,
    verdicts: dict[Judged, Verdict],
    labels: dict[Judged, npt.NDArray[np.int64]],
) -> Ensemble:
    contract, table = run.data(), run.table()
    return Ensemble(
        name=_name(run.path),
        classes=contract.classes,
        image=contract.image,
        members=members,
        voting=Voting(mode=rule.mode, weights=rule.weights, temperature=rule.temperature),
        conformal=Conformal(alpha=settings.alpha, quantiles=rule.quantiles or ()),
        review=Review(threshold=rule.review_threshold, risk=settings.risk),
        data=FittedOn(
            data=contract.source,
            fingerprint=contract.fingerprint,
            images={
                "train": len(table.rows("train")),
                "validation": len(table.rows("validation")),
                "test": len(table.rows("test")),
            },
        ),
        scores={
            split: scores_of(verdict.probabilities, labels[split], verdict.label) for split, verdict in verdicts.items()
        },
    )


def _rank(
    answers: dict[Judged, Floats], labels: dict[Judged, npt.NDArray[np.int64]], index: int
) -> tuple[float, float]:
    """Return what a member is compared by, the lowest first: accuracy on test images, and where that is equal, NLL.

    With a temperature of its own, as the ensemble has one: else a member would lose by that alone.
    """
    temperature = fitted_temperature(answers["validation"][:, index], labels["validation"])
    scores = scores_of(temper(answers["test"][:, index], temperature), labels["test"])
    return -scores.accuracy, scores.nll


def _name(path: Path) -> str:
    """Return the run's folder as a name for metrics and reports."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).strip("-._")[:100]
    return name or "ensemble"


def _covered(verdict: Verdict, labels: npt.NDArray[np.int64]) -> float:
    return float(np.take_along_axis(verdict.prediction_set, labels[:, None], axis=-1).mean())
