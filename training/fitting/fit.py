"""Fit an ensemble of finished members on validation images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from plurum.errors import SettingsError
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.run import Run, Split, Table, number_patients
from plurum.settings.fitting import FitSettings
from plurum.spec import Conformal, Ensemble, FittedOn, Member, Review, Scores, Voting, write_metadata
from plurum.training.data.splits import HELD_OUT
from plurum.training.data.unlabelled import find_unlabelled_images, keep_unlabelled, read_unlabelled
from plurum.training.evaluation.evaluate import best_single
from plurum.training.evaluation.patient_scores import score_patients
from plurum.training.fitting.baseline import baseline_from_verdict
from plurum.training.fitting.cascades import CascadeInputs, cascade_fit, fit_run_cascade, with_cascade
from plurum.training.fitting.certification import Certification, certify_review, review_target
from plurum.training.fitting.cross_validation import fit_fold_vote, fold_models
from plurum.training.fitting.decided import DecidedSplit, PointScores, score_point
from plurum.training.fitting.outliers import FittedDetectors, fit_detectors, fit_outliers
from plurum.training.fitting.points import check_point_options, costs_of
from plurum.training.fitting.priors import class_frequencies, estimate_frequencies, frequencies_from_prior, prior_ratio
from plurum.training.fitting.report import FitReport, MemberFit
from plurum.training.fitting.votes import FittedVote, ValidationPredictions, fit_sets_and_review, fit_vote
from plurum.training.inference.predictions import predict_files, predict_members, predict_splits
from plurum.training.learning.plan import unfinished_members
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval
from plurum.training.statistics.curves import Curve, rates_by_threshold, risk_coverage_curve
from plurum.training.statistics.metrics import LabelledPredictions
from plurum.training.statistics.patients import group_by_patient
from plurum.training.statistics.results import Estimate
from plurum.training.statistics.scoring import compute_scores
from plurum.voting import Verdict, decide_at, decide_members, temper, with_prior

__all__ = ["fit_report", "fit_run"]

Fitted = Literal["validation", "test"]
Part = Literal["train", "validation", "test"]
_SPLITS: tuple[Fitted, ...] = ("validation", "test")


@dataclass(frozen=True)
class _SplitResults:
    """Predictions for the images of one split.

    Attributes:
        members: Probabilities of all members, `[images, members, classes]`.
        verdict: Verdict of the vote.
        labels: True classes, `[images]`.
        patients: Patient of each image.
        weights: Weight of each image, `[images]`; None if each is 1.
    """

    members: Floats
    verdict: Verdict
    labels: Ints
    patients: tuple[str, ...]
    weights: Floats | None

    @property
    def predictions(self) -> LabelledPredictions:
        return LabelledPredictions(self.verdict.probabilities, self.verdict.label, self.labels)

    @property
    def scores(self) -> Scores:
        return compute_scores(self.verdict.probabilities, self.labels, self.verdict.label, self.weights)

    def share(self, of: npt.NDArray[np.bool_]) -> float:
        return float(np.average(of, weights=self.weights))


def fit_run(run: Path, settings: FitSettings | None = None) -> Ensemble:
    """Fit the vote of a run's members, write `ensemble.json` and return its contents; see `fit_report`."""
    return fit_report(run, settings or FitSettings()).ensemble


def fit_report(path: Path, settings: FitSettings, times_ms: Mapping[str, float] | None = None) -> FitReport:
    """Fit the vote of the members of the run `path`, write `ensemble.json` and return the report.

    The vote is fitted on validation images; test images are only scored. With folds, members are selected and weighted
    on out-of-fold predictions for training images. The steps are: select members; fit weights
    or stacking; fit the temperature; correct for class frequencies, if requested; fit prediction sets, the operating
    point, if requested, and the review; fit the outlier test, to features of training images too. Weights stay equal
    for hard votes, and unless others are better by a statistically significant margin.

    Args:
        path: Folder of the run.
        settings: Settings of the fit.
        times_ms: Time of one image in each member by name, ms, by which a cascade orders them; None takes
            multiply–adds.

    Raises:
        MetadataError: the folder is not a run, has no finished member, or has an invalid one; or it has folds, and
            lacks members of some of them.
        DataError: there are too few images for stacking, or unlabelled images are unreadable.
        SettingsError: the prior's classes are not those of the run, the operating point is not reachable, or a promise
            needs certification patients.
        OutputError: `ensemble.json` can't be written.
        MissingExtraError: PyTorch, timm, safetensors, scikit-learn or SciPy is not installed.
    """
    run = Run(path)
    members, classes = run.members(), run.data().classes
    _check_prior(settings, classes)
    check_point_options(settings, classes)
    costs = None if settings.costs is None else costs_of(settings, classes)
    table = run.table()
    models = fold_models(run, members, settings)
    aside = _check_held_out(settings, table)
    unlabelled = None if settings.unlabelled is None else read_unlabelled(run, settings.unlabelled, are_new=True)
    known = _labelled(table, "validation", predict_members(run, members, ("validation",))["validation"], classes)
    vote = fit_fold_vote(run, members, models, known, settings) if models else fit_vote(known, settings)
    detectors = None
    if not settings.no_outliers:
        detectors = fit_detectors(run, [members[index] for index in vote.kept], settings.seed)
    parts = _predict_parts(run, members, vote, detectors, known, ("test", *aside))
    known = parts["validation"]
    shares = _served_frequencies(run, members, vote, known, settings)
    ratio = None if shares is None else prior_ratio(shares, class_frequencies(known.labels, len(classes)), classes)
    vote = fit_sets_and_review(vote, known, settings, ratio, costs, parts.get("calibration"))
    outliers = None
    if detectors is not None:
        novelty = {split: part.novelty for split, part in parts.items() if part.novelty is not None}
        outliers = fit_outliers(run, [members[index] for index in vote.kept], detectors, novelty, settings)
        vote = replace(vote, rule=replace(vote.rule, outliers=outliers.test))
    # Costs of reviews, and other class frequencies, decide on reviews in another way; 0 and 1 are no promises.
    by_cost = vote.point is not None and vote.point.review_cost is not None
    review = None
    if "certification" in parts and ratio is None and not by_cost and settings.risk not in {0, 1}:
        review = review_target(vote, classes, settings)
    cascade = None
    if settings.cascade:
        rule = None if outliers is None else outliers.rule
        cascade = fit_run_cascade(
            run, members, CascadeInputs(vote, parts, outliers=rule, times_ms=times_ms), unlabelled, settings, review
        )
    certification = None if cascade is None else cascade.certification
    if certification is None and review is not None:
        certification = certify_review(vote, known, parts["certification"], settings)
    vote = vote if certification is None else certification.vote
    results = {
        split: _SplitResults(
            parts[split].predictions,
            vote.validation_verdict(known.predictions, known.novelty)
            if split == "validation"
            else vote.verdict(parts[split].predictions, parts[split].novelty),
            parts[split].labels,
            tuple(table.patients[row] for row in table.rows(split)),
            None if ratio is None else np.asarray(ratio)[parts[split].labels],
        )
        for split in _SPLITS
    }
    ensemble = _ensemble(run, members, vote, settings, results, certification)
    if outliers is not None:
        ensemble = ensemble.with_outliers(outliers.rule)
    if cascade is not None:
        ensemble = with_cascade(ensemble, cascade, vote, known)
    report = _report(run, ensemble, members, vote, settings, results, shares)
    findings = {} if certification is None else certification.findings
    if cascade is not None:
        findings["cascade"] = cascade_fit(ensemble, cascade, vote, parts["test"], settings)
    report = report.model_copy(update={"outliers": outliers and outliers.found, **findings})
    keep_unlabelled(run, None if ensemble.cascade is None else unlabelled)
    write_metadata(run.ensemble_file, ensemble)
    return report


def _labelled(table: Table, split: Split, predictions: Floats, classes: tuple[str, ...]) -> ValidationPredictions:
    """Return the predictions for the images of a split with their labels and groups."""
    rows = table.rows(split)
    groups = number_patients([table.patients[row] for row in rows])
    return ValidationPredictions(predictions, table.labels[rows], groups, classes)


def _predict_parts(
    run: Run,
    members: tuple[Member, ...],
    vote: FittedVote,
    detectors: FittedDetectors | None,
    known: ValidationPredictions,
    splits: tuple[Split, ...],
) -> dict[Split, ValidationPredictions]:
    """Return the predictions for validation images and other splits, with the novelty by the selected members."""
    if detectors is None:
        found = predict_splits(run, members, (None,) * len(members), splits)
    else:
        by_index = dict(zip(vote.kept.tolist(), detectors.detectors, strict=True))
        found = predict_splits(run, members, [by_index.get(index) for index in range(len(members))], splits)
        known = replace(known, novelty=detectors.novelty)
    table = run.table()
    parts: dict[Split, ValidationPredictions] = {"validation": known}
    for split, one in found.items():
        part = _labelled(table, split, one.probabilities, run.data().classes)
        parts[split] = part if detectors is None else replace(part, novelty=one.novelty[:, vote.kept])
    return parts


def _check_held_out(settings: FitSettings, table: Table) -> tuple[Split, ...]:
    """Return the splits that are set aside, and check that they are what the settings need."""
    found = tuple(split for split in HELD_OUT if split in table.splits)
    if settings.risk == "auto":
        what, instead = "--risk", "expected a number, got auto, which"
    elif settings.risk_by_class:
        what, instead = "--risk-by-class", "it"
    elif settings.cascade:
        what, instead = "--cascade", "it"
    else:
        return found
    if "certification" not in found:
        raise SettingsError(
            f"{what}: {instead} needs certification patients. Set some aside: plurum train --certification 0.3"
        )
    if settings.prior is not None or settings.prior_from is not None:
        raise SettingsError(f"{what}: {instead} promises nothing with --prior. Leave one out.")
    return found


def _check_prior(settings: FitSettings, classes: tuple[str, ...]) -> None:
    """Check the prior's settings before the members predict."""
    if settings.prior is not None:
        frequencies_from_prior(settings.prior, classes)
    if settings.prior_from is not None:
        find_unlabelled_images(settings.prior_from)


def _served_frequencies(
    run: Run, members: tuple[Member, ...], vote: FittedVote, known: ValidationPredictions, settings: FitSettings
) -> Floats | None:
    """Return the class frequencies of the images to be served, stated or estimated; None if not requested."""
    if settings.prior is not None:
        return frequencies_from_prior(settings.prior, known.classes)
    if settings.prior_from is None:
        return None
    fitted = class_frequencies(known.labels, len(known.classes))
    # Refuse a class without validation images before predicting thousands of unlabelled images.
    prior_ratio(fitted, fitted, known.classes)
    predictions = predict_files(run, members, find_unlabelled_images(settings.prior_from))
    return estimate_frequencies(vote.verdict(predictions).probabilities, fitted)


def _ensemble(
    run: Run,
    members: tuple[Member, ...],
    vote: FittedVote,
    settings: FitSettings,
    results: dict[Fitted, _SplitResults],
    certification: Certification | None,
) -> Ensemble:
    metadata, table, rule = run.data(), run.table(), vote.rule
    by_cost = vote.point is not None and vote.point.review_cost is not None
    promise = certification.promise if certification else None
    target = promise.risk if promise else None if by_cost else settings.estimated_risk
    return Ensemble(
        version=1 if vote.point is None and promise is None and settings.audit_rate is None else 2,
        promise=promise,
        name=_ensemble_name(run.path),
        classes=metadata.classes,
        image=metadata.image,
        members=tuple(members[index] for index in vote.kept),
        voting=Voting.model_validate(rule, from_attributes=True),
        conformal=Conformal(alpha=settings.alpha, quantiles=rule.quantiles or ()),
        review=Review(threshold=rule.review_threshold, risk=target),
        patient_rule=settings.patient_rule if any(table.patients) else None,
        data=FittedOn(
            data=metadata.source,
            fingerprint=metadata.fingerprint,
            images={split: len(table.rows(split)) for split in get_args(Part)},
        ),
        scores={split: part.scores for split, part in results.items()},
        baseline=baseline_from_verdict(results["validation"].verdict, rule, results["validation"].weights),
        operating_point=vote.point,
        audit_rate=settings.audit_rate,
    )


def _report(
    run: Run,
    ensemble: Ensemble,
    members: tuple[Member, ...],
    vote: FittedVote,
    settings: FitSettings,
    results: dict[Fitted, _SplitResults],
    shares: Floats | None,
) -> FitReport:
    validation, test = results["validation"], results["test"]
    tried = vote.weights_tried
    best, temperature = best_single(validation.members, validation.labels)
    alone = with_prior(temper(test.members[:, best], temperature), vote.rule.prior_ratio)
    best_answers = LabelledPredictions(alone, decide_at(alone, vote.rule.point), test.labels)
    candidates = {"ensemble": test.predictions, "best single": best_answers}
    return FitReport(
        ensemble=ensemble,
        members=_member_fits(members, vote, results),
        select=settings.select,
        weights_tried=None if tried is None else {members[index].name: tried[index] for index in tried},
        nll_saved=vote.nll_saved,
        reviewed={split: part.share(part.verdict.review) for split, part in results.items()},
        covered={split: part.share(_coverage_mask(part)) for split, part in results.items()},
        risk_coverage=risk_coverage_curve(validation.predictions, validation.weights),
        best_single=members[best].name,
        differences=_differences(test, best_answers, settings),
        patient_level=score_patients(
            group_by_patient(test.patients, test.labels), candidates, settings.draws, settings.seed, vote.rule.point
        ),
        prior=None if shares is None else dict(zip(ensemble.classes, shares.tolist(), strict=True)),
        unfinished=unfinished_members(run),
        folds=run.table().number_of_folds,
        decisions=_decisions(ensemble, vote, results, settings),
        rates=_rates(vote, validation),
    )


def _rates(vote: FittedVote, validation: _SplitResults) -> dict[Literal["sensitivity", "specificity"], Curve] | None:
    """Return the rates of the positive class by threshold; None without an operating point of two classes."""
    if vote.rule.point is None or vote.rule.point.positive is None:
        return None
    positive = vote.rule.point.positive
    scores = validation.verdict.probabilities[:, positive]
    return rates_by_threshold(scores, validation.labels == positive, validation.weights)


def _decisions(
    ensemble: Ensemble, vote: FittedVote, results: dict[Fitted, _SplitResults], settings: FitSettings
) -> dict[Fitted, PointScores] | None:
    """Return the figures of the operating point by split; None without one."""
    if vote.point is None or vote.rule.point is None:
        return None
    found = {}
    for split, part in results.items():
        decided = DecidedSplit(part.verdict, part.labels, part.patients, part.weights)
        found[split] = score_point(
            decided, vote.point, vote.rule.point, ensemble.patient_rule, settings.seed, settings.draws
        )
    return found


def _member_fits(
    members: tuple[Member, ...], vote: FittedVote, results: dict[Fitted, _SplitResults]
) -> dict[str, MemberFit]:
    weights = dict(zip(vote.kept.tolist(), vote.rule.weights, strict=True))
    return {
        member.name: MemberFit(
            weight=weights.get(index, 0.0),
            contribution=vote.selection.contributions[index],
            scores={
                split: compute_scores(
                    part.members[:, index],
                    part.labels,
                    decide_members(part.members[:, [index]], vote.rule)[:, 0],
                    part.weights,
                )
                for split, part in results.items()
            },
        )
        for index, member in enumerate(members)
    }


def _differences(test: _SplitResults, best: LabelledPredictions, settings: FitSettings) -> dict[str, Estimate]:
    """Return the ensemble's differences from its best member on test images, paired by bootstrap draws."""
    bootstrap = Bootstrap(number_patients(test.patients), settings.draws, settings.seed)

    def figure(values: Floats) -> Estimate:
        low, high = mean_interval(values, bootstrap, weights=test.weights)
        return Estimate(value=float(np.average(values, weights=test.weights)), low=low, high=high)

    return {
        "accuracy": figure(best.wrong.astype(np.float64) - test.predictions.wrong),
        "nll": figure(
            compute_losses(test.verdict.probabilities, test.labels) - compute_losses(best.probabilities, test.labels)
        ),
    }


def _ensemble_name(path: Path) -> str:
    """Return the ensemble's name: the run's folder name, restricted to characters allowed in metrics."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).strip("-._")[:100]
    return name or "ensemble"


def _coverage_mask(part: _SplitResults) -> npt.NDArray[np.bool_]:
    """Return a mask of images whose prediction set contains the true class, `[images]`."""
    return np.take_along_axis(part.verdict.prediction_set, part.labels[:, None], axis=-1)[:, 0]
