"""From finished members to an ensemble whose numbers are fitted on validation images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from plurum.run import Run
from plurum.spec import Baseline, Conformal, Ensemble, FittedOn, Member, Review, Scores, Voting, write_contract
from plurum.training.data.unlabelled import image_files
from plurum.training.evaluation.judge import best_single, patient_level_of
from plurum.training.fitting.priors import estimated_shares, prior_ratio, shares_of, stated_shares
from plurum.training.fitting.report import FitReport, MemberFit
from plurum.training.fitting.votes import FittedVote, Known, fitted_vote, with_meaning
from plurum.training.inference.answers import file_answers, member_answers
from plurum.training.learning.plan import unfinished_members
from plurum.training.settings import FitSettings
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.calibration import groups_of
from plurum.training.statistics.curves import risk_coverage_curve
from plurum.training.statistics.judgement import Figure
from plurum.training.statistics.metrics import Answers
from plurum.training.statistics.patients import patients_of
from plurum.training.statistics.scoring import losses_of, scores_of
from plurum.voting import Verdict, temper, with_prior

__all__ = ["fit_report", "fit_run"]

Fitted = Literal["validation", "test"]
_SPLITS: tuple[Fitted, ...] = ("validation", "test")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Answered:
    """The images of one split, and what was answered.

    Attributes:
        members: `[images, members, classes]`, of all members.
        verdict: Of the vote.
        labels: `[images]`.
        patients: One per image.
        weights: `[images]`, as how many images each counts; None for one each.
    """

    members: Floats
    verdict: Verdict
    labels: Ints
    patients: tuple[str, ...]
    weights: Floats | None

    @property
    def answers(self) -> Answers:
        return Answers(self.verdict.probabilities, self.verdict.label, self.labels)

    @property
    def scores(self) -> Scores:
        return scores_of(self.verdict.probabilities, self.labels, self.verdict.label, self.weights)

    def share(self, of: npt.NDArray[np.bool_]) -> float:
        return float(np.average(of, weights=self.weights))


def fit_run(run: Path, settings: FitSettings | None = None) -> Ensemble:
    """Fit how the members of the run vote, write its `ensemble.json` and return it; see `fit_report`."""
    return fit_report(run, settings or FitSettings()).ensemble


def fit_report(path: Path, settings: FitSettings) -> FitReport:
    """Fit how the members of the run `path` vote, write its `ensemble.json` and say what was found out.

    All is fitted on validation images; test images are only scored. In this order: who is in the vote; its weights
    (equal ones unless others are better beyond chance, and always for hard votes) or its stacking; its temperature;
    the correction for the classes' shares where one is wished for; prediction sets; review threshold.

    Raises:
        ContractError: the folder is no run, has no finished member, or a broken one.
        DataError: too few images to stack on, or unlabelled ones that can't be read.
        SettingsError: a prior for other classes than the run's.
        OutputError: `ensemble.json` can't be written.
        MissingExtraError: PyTorch, timm, safetensors, scikit-learn or SciPy is not installed.
    """
    run = Run(path)
    members, classes = run.members(), run.data().classes
    _check_prior(settings, classes)
    members_answer = member_answers(run, members, _SPLITS)
    table = run.table()
    labels = {split: table.labels[table.rows(split)] for split in _SPLITS}
    patients = {split: tuple(table.patients[row] for row in table.rows(split)) for split in _SPLITS}
    known = Known(members_answer["validation"], labels["validation"], groups_of(patients["validation"]), classes)
    vote = fitted_vote(known, settings)
    shares = _shares(run, members, vote, known, settings)
    ratio = None if shares is None else prior_ratio(shares, shares_of(known.labels, len(classes)), classes)
    vote = with_meaning(vote, known, settings, ratio)
    answered = {
        split: _Answered(
            members_answer[split],
            vote.fitted_verdict(known.answers) if split == "validation" else vote.verdict(members_answer[split]),
            labels[split],
            patients[split],
            None if ratio is None else np.asarray(ratio)[labels[split]],
        )
        for split in _SPLITS
    }
    ensemble = _ensemble(run, members, vote, settings, answered)
    report = _report(run, ensemble, members, vote, settings, answered, shares)
    write_contract(run.ensemble_file, ensemble)
    return report


def _check_prior(settings: FitSettings, classes: tuple[str, ...]) -> None:
    """Refuse what can be refused before members are asked."""
    if settings.prior is not None:
        stated_shares(settings.prior, classes)
    if settings.prior_from is not None:
        image_files(Path(settings.prior_from))


def _shares(
    run: Run, members: tuple[Member, ...], vote: FittedVote, known: Known, settings: FitSettings
) -> Floats | None:
    """Return the classes' shares among the images to be served, stated or estimated; None where nothing is said."""
    if settings.prior is not None:
        return stated_shares(settings.prior, known.classes)
    if settings.prior_from is None:
        return None
    fitted = shares_of(known.labels, len(known.classes))
    # A class without a validation image is refused before thousands of others are asked about.
    prior_ratio(fitted, fitted, known.classes)
    answers = file_answers(run, members, image_files(Path(settings.prior_from)))
    return estimated_shares(vote.verdict(answers).probabilities, fitted)


def _ensemble(
    run: Run,
    members: tuple[Member, ...],
    vote: FittedVote,
    settings: FitSettings,
    answered: dict[Fitted, _Answered],
) -> Ensemble:
    contract, table, rule = run.data(), run.table(), vote.rule
    return Ensemble(
        name=_name(run.path),
        classes=contract.classes,
        image=contract.image,
        members=tuple(members[index] for index in vote.kept),
        voting=Voting(
            mode=rule.mode,
            weights=rule.weights,
            temperature=rule.temperature,
            coefficients=rule.coefficients,
            intercepts=rule.intercepts,
            prior_ratio=rule.prior_ratio,
        ),
        conformal=Conformal(alpha=settings.alpha, quantiles=rule.quantiles or ()),
        review=Review(threshold=rule.review_threshold, risk=settings.risk),
        patient_rule=settings.patient_rule if any(table.patients) else None,
        data=FittedOn(
            data=contract.source,
            fingerprint=contract.fingerprint,
            images={
                "train": len(table.rows("train")),
                "validation": len(table.rows("validation")),
                "test": len(table.rows("test")),
            },
        ),
        scores={split: part.scores for split, part in answered.items()},
        baseline=_baseline(answered["validation"], vote.kept),
    )


def _baseline(part: _Answered, kept: Ints) -> Baseline:
    """Return what drift is to be measured against: shares of the answers, given by the members `kept` together."""
    probabilities = part.verdict.probabilities
    dissents = part.members[:, kept].argmax(axis=-1) != part.verdict.label[:, None]
    limits = np.array(Baseline.model_fields["confidence_limits"].default)

    def shares(bins: Ints, count: int) -> tuple[float, ...]:
        counts = np.bincount(bins, part.weights, count)
        return tuple((counts / counts.sum()).tolist())

    return Baseline(
        images=len(part.labels),
        class_shares=shares(part.verdict.label, probabilities.shape[1]),
        confidence_limits=tuple(limits.tolist()),
        # A bin holds its upper limit, as Prometheus' do.
        confidence_shares=shares(np.searchsorted(limits, probabilities.max(axis=-1)), len(limits) + 1),
        review_share=part.share(part.verdict.review),
        dissent_shares=tuple(part.share(dissent) for dissent in dissents.T),
    )


def _report(
    run: Run,
    ensemble: Ensemble,
    members: tuple[Member, ...],
    vote: FittedVote,
    settings: FitSettings,
    answered: dict[Fitted, _Answered],
    shares: Floats | None,
) -> FitReport:
    validation, test = answered["validation"], answered["test"]
    tried = vote.weights_tried
    best, temperature = best_single(validation.members, validation.labels)
    alone = with_prior(temper(test.members[:, best], temperature), vote.rule.prior_ratio)
    best_answers = Answers(alone, alone.argmax(axis=-1), test.labels)
    candidates = {"ensemble": test.answers, "best single": best_answers}
    return FitReport(
        ensemble=ensemble,
        members=_member_fits(members, vote, answered),
        select=settings.select,
        weights_tried=None if tried is None else {members[index].name: tried[index] for index in tried},
        nll_saved=vote.nll_saved,
        reviewed={split: part.share(part.verdict.review) for split, part in answered.items()},
        covered={split: part.share(_covered(part)) for split, part in answered.items()},
        risk_coverage=risk_coverage_curve(validation.answers, validation.weights),
        best_single=members[best].name,
        differences=_differences(test, best_answers, settings),
        patient_level=patient_level_of(
            patients_of(test.patients, test.labels), candidates, settings.draws, settings.seed
        ),
        prior=None if shares is None else dict(zip(ensemble.classes, shares.tolist(), strict=True)),
        unfinished=unfinished_members(run),
    )


def _member_fits(
    members: tuple[Member, ...], vote: FittedVote, answered: dict[Fitted, _Answered]
) -> dict[str, MemberFit]:
    weights = dict(zip(vote.kept.tolist(), vote.rule.weights, strict=True))
    return {
        member.name: MemberFit(
            weight=weights.get(index, 0.0),
            contribution=vote.selection.contributions[index],
            scores={
                split: scores_of(part.members[:, index], part.labels, weights=part.weights)
                for split, part in answered.items()
            },
        )
        for index, member in enumerate(members)
    }


def _differences(test: _Answered, best: Answers, settings: FitSettings) -> dict[str, Figure]:
    """Return by how much the ensemble differs from its best member on the same drawn test patients."""
    bootstrap = Bootstrap(groups_of(test.patients), settings.draws, settings.seed)

    def figure(values: Floats) -> Figure:
        low, high = mean_interval(values, bootstrap, weights=test.weights)
        return Figure(value=float(np.average(values, weights=test.weights)), low=low, high=high)

    return {
        "accuracy": figure(best.wrong.astype(np.float64) - test.answers.wrong),
        "nll": figure(losses_of(test.verdict.probabilities, test.labels) - losses_of(best.probabilities, test.labels)),
    }


def _name(path: Path) -> str:
    """Return the run's folder as a name for metrics and reports."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).strip("-._")[:100]
    return name or "ensemble"


def _covered(part: _Answered) -> npt.NDArray[np.bool_]:
    """Return whether each image's true class is in its prediction set, `[images]`."""
    return np.take_along_axis(part.verdict.prediction_set, part.labels[:, None], axis=-1)[:, 0]
