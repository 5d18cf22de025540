"""Settings of a fit."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from plurum.conventions import PatientRule
from plurum.settings.options import Option, Settings
from plurum.settings.training import Draws, Seed, Text

__all__ = ["CRITERIA", "Criterion", "FitSettings"]


def _shares_from_texts(given: object) -> object:
    """Return the fractions of `CLASS=SHARE` texts, by class; pass other values on."""
    if not isinstance(given, list):
        return given
    shares: dict[str, str] = {}
    for text in given:
        # Class names may contain =.
        name, _, share = text.rpartition("=")
        if not name or name in shares:
            raise ValueError("expected CLASS=SHARE once per class, such as CE=0.7")
        shares[name] = share
    return shares or None


Criterion = Literal["sensitivity", "specificity", "npv", "costs"]
# Criteria of an operating point; each is an option of a fit.
CRITERIA: tuple[Criterion, ...] = ("sensitivity", "specificity", "npv", "costs")


def _number_or_auto(given: object) -> object:
    """Return the number that a text states; pass `auto` and other values on."""
    if not isinstance(given, str) or given == "auto":
        return given
    try:
        return float(given)
    except ValueError:
        raise ValueError("expected a number from 0 to 1, or auto") from None


class FitSettings(Settings):
    """Settings of a fit.

    Attributes:
        mode: Voting mode: `soft` averages probabilities, `hard` counts votes, `stack` fits a logistic regression to
            the members' probabilities.
        select: Member selection: `backward` drops members without which the vote is significantly better, `greedy`
            adds the most helpful member repeatedly, `all` keeps every member.
        l2: L2 penalty on the coefficients of `stack`, scikit-learn's 1 / C.
        alpha: Target fraction of prediction sets that miss the true class, per class, 0 to 1.
        risk: Target error rate among predictions without review, 0 to 1. With certification patients, which `plurum
            train --certification` sets aside, it is a promise on the review risk of new patients; `auto` promises the
            smallest risk that they allow. Without, it is an estimate on validation images.
        risk_by_class: If True, the risk is also promised for the patients of each true class; needs certification
            patients.
        positive: Positive class of the operating point; only with two classes.
        sensitivity: Sensitivity for which to choose the operating point, with the highest specificity; 0 to 1.
        specificity: Specificity for which to choose the operating point, with the highest sensitivity; 0 to 1.
        npv: Negative predictive value for which to choose the operating point, 0 to 1.
        costs: CSV file with the cost of each decision, by true class, to choose the operating point by; columns true,
            decided, cost.
        confidence: Confidence with which a requested sensitivity, specificity, NPV or review risk holds for new
            patients, 0 to 1; by default 0.95.
        prior: Expected fraction of a class in production; repeat for every class. By default, as in the data.
        prior_from: Unlabelled production images to estimate class fractions from: a folder, or a .csv manifest with a
            column `path`.
        patient_rule: Rule that combines the predictions of a patient's images, where patients are known.
        cascade: If True, fit a cascade: cheap members settle the images that leave no doubt, and all members vote on
            the others. Needs certification patients, and a soft vote.
        cascade_risk: Largest fraction of patients that the cascade may hurt, 0 to 1: a correct label of the whole vote
            changes, or a review is lost. It is a promise on new patients; `auto` promises the smallest that the
            certification patients allow.
        cascade_order: Member of the cascade; repeat for every selected member, in the order in which they run. By
            default, the member with the fewest multiply–adds runs first.
        unlabelled: Images without labels, of patients that the run does not have, to certify the cascade with more
            patients: a folder, or a .csv manifest with a column `path` and, if known, `patient`. An image of an unknown
            patient counts as a patient. The run keeps a copy for export.
        audit_rate: Probability with which the server draws a patient, or an image of an unknown patient, for audit.
        no_outliers: If True, fit no test for images that are unlike the training images.
        outlier_alpha: P-value of the outlier test below which a prediction needs review, 0 to 1. At most this fraction
            of the images of new patients like yours needs review by mistake.
        draws: Bootstrap resamples, by patient, for comparing votes.
        seed: Random seed of the bootstrap, of the folds of `stack`, and of drawing training images for outliers.
    """

    mode: Literal["soft", "hard", "stack"] = "soft"
    select: Literal["backward", "greedy", "all"] = "backward"
    l2: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    risk: Annotated[
        Annotated[float, Field(ge=0, le=1)] | Literal["auto"],
        BeforeValidator(_number_or_auto),
        Option(metavar="RISK", type=str),
    ] = 0.01
    risk_by_class: bool = False
    positive: Annotated[Text | None, Option(metavar="CLASS")] = None
    sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    specificity: Annotated[float, Field(gt=0, lt=1)] | None = None
    npv: Annotated[float, Field(gt=0, lt=1)] | None = None
    costs: Annotated[Text | None, Option(metavar="CSV")] = None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    prior: Annotated[
        dict[str, Annotated[float, Field(gt=0, lt=1)]] | None,
        BeforeValidator(_shares_from_texts),
        Option(metavar="CLASS=SHARE", type=list[str] | None),
    ] = None
    prior_from: Annotated[Text | None, Option(metavar="PATH")] = None
    patient_rule: PatientRule = "mean"
    cascade: bool = False
    cascade_risk: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | Literal["auto"],
        BeforeValidator(_number_or_auto),
        Option(metavar="RISK", type=str),
    ] = 0.002
    cascade_order: Annotated[tuple[Text, ...], Option(metavar="MEMBER")] = ()
    unlabelled: Annotated[Text | None, Option(metavar="PATH")] = None
    audit_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    no_outliers: bool = False
    outlier_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    draws: Draws = 1000
    seed: Seed = 0

    @model_validator(mode="after")
    def _parts_agree(self) -> FitSettings:
        if self.select == "greedy" and self.mode != "soft":
            raise ValueError(
                f"--select: greedy selects the weights of a soft vote; expected --mode soft, got --mode {self.mode}"
            )
        if self.prior is not None and self.prior_from is not None:
            raise ValueError("--prior: can't be combined with --prior-from, which estimates it. Leave one of them out")
        if self.mode == "hard" and (self.prior or self.prior_from):
            raise ValueError(
                "--prior: corrects probabilities, and --mode hard has vote counts instead. Choose --mode soft or stack"
            )
        if self.prior is not None and not math.isclose(sum(self.prior.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"--prior: expected a sum of 1, got {sum(self.prior.values()):g}")
        self._check_point()
        self._check_cascade()
        return self

    def _check_cascade(self) -> None:
        """Check that the options of the cascade agree with the others."""
        if not self.cascade:
            for name in ("cascade_risk", "cascade_order", "unlabelled"):
                if getattr(self, name) != FitSettings.model_fields[name].default:
                    raise ValueError(f"--{name.replace('_', '-')}: expected --cascade with it, got none. Add it")
            return
        if self.mode != "soft":
            reason = "counts votes, which are no confidence" if self.mode == "hard" else "needs all members for a vote"
            raise ValueError(f"--cascade: expected --mode soft, got {self.mode}, which {reason}. Choose --mode soft")
        if self.prior or self.prior_from:
            raise ValueError("--cascade: can't be combined with --prior, which makes promises void. Leave one out")
        if self.risk == "auto":
            raise ValueError("--risk: expected a number with --cascade, got auto. Promise a number")

    @property
    def estimated_risk(self) -> float:
        """Target error rate among validation predictions that skip review; the default for `auto`."""
        return 0.01 if self.risk == "auto" else self.risk

    @property
    def criterion(self) -> Criterion | None:
        """Criterion of the operating point; None if none is requested."""
        return next((name for name in CRITERIA if getattr(self, name) is not None), None)

    def _check_point(self) -> None:
        """Check that the options of the operating point agree."""
        given = [name for name in CRITERIA if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]}: can't be combined with --{given[1]}. Leave one of them out")
        if given and self.risk == "auto":
            raise ValueError(f"--risk: expected a number with --{given[0]}, got auto. Promise a number")
        if self.risk_by_class and self.risk in {0, 1}:
            raise ValueError(f"--risk: expected a number between 0 and 1 with --risk-by-class, got {self.risk:g}")
        if given and self.mode == "hard":
            raise ValueError(
                f"--{given[0]}: chooses a probability, and --mode hard has vote counts instead. Choose --mode soft or "
                f"stack"
            )
        if self.positive is not None and not given:
            names = ", ".join(f"--{name}" for name in CRITERIA)
            raise ValueError(f"--positive: expected one of {names} with it, got none. Add one")
        if given and given != ["costs"] and self.positive is None:
            raise ValueError(f"--{given[0]}: expected --positive with it, got none. Name the class to be found")
        if self.npv is not None and (self.prior or self.prior_from):
            raise ValueError(
                "--npv: can't be combined with --prior, under which the validation images have other frequencies. "
                "Choose --sensitivity"
            )
