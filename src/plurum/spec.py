"""The contract: what the members expect and answer, and how they vote.

`member.json` lies beside a member's weights, `ensemble.json` at the top of a run and of a model repository.
Export, server, client and benchmarks read them; nobody repeats a constant.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from plurum.errors import ContractError
from plurum.files import write_text
from plurum.regular_files import read_regular
from plurum.voting import VotingRule, rule_from_ensemble

__all__ = [
    "IMAGE",
    "INPUT_PIXELS",
    "LOGITS",
    "OUTPUTS",
    "RESERVED_NAMES",
    "Baseline",
    "Conformal",
    "Contract",
    "Ensemble",
    "FittedOn",
    "ImageSpec",
    "Member",
    "PatientRule",
    "Review",
    "Scores",
    "Voting",
    "read_ensemble",
    "read_member",
    "release_from_version",
    "version_from_release",
    "write_contract",
]

# Tensor names on the wire.
IMAGE = "IMAGE"
INPUT_PIXELS = "PIXELS"
LOGITS = "LOGITS"
# Name → (Triton data type, dims with C classes and M members), as every served model answers them.
OUTPUTS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "PROBABILITIES": ("TYPE_FP32", ("C",)),
    "LABEL": ("TYPE_STRING", (1,)),
    "ENTROPY": ("TYPE_FP32", (1,)),
    "DISAGREEMENT": ("TYPE_FP32", (1,)),
    "STD": ("TYPE_FP32", ("C",)),
    "MEMBER_PROBABILITIES": ("TYPE_FP32", ("M", "C")),
    "PREDICTION_SET": ("TYPE_BOOL", ("C",)),
    "REVIEW": ("TYPE_BOOL", (1,)),
}
# Model names in a repository that no member may take.
RESERVED_NAMES = frozenset({"ensemble", "ensemble_pixels", "ensemble_fused", "fused", "labels", "preprocess", "voter"})

_TAG = re.compile(r"[0-9a-f]{8}")
# A name becomes a folder, a Triton model and a metric label.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


# How the answers to a patient's images become one; `plurum.voting.pool_groups` carries it out.
PatientRule = Literal["mean", "max", "majority"]


def _moderate(value: float) -> float:
    # Wider than any fit reaches; beyond, the vote would overflow to NaN.
    if value and not 1e-100 <= abs(value) <= 1e100:
        raise ValueError(f"must lie between 1e-100 and 1e100, without its sign, and is {value}")
    return value


Scale = Annotated[Positive, AfterValidator(_moderate)]
Coefficient = Annotated[FiniteFloat, AfterValidator(_moderate)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a class is named twice: {', '.join(names)}")
    return names


Classes = Annotated[tuple[Text, ...], Field(min_length=2), AfterValidator(_distinct)]


class Contract(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSpec(Contract):
    """How an image becomes a member's input; `plurum.images` carries it out.

    Attributes:
        height: Pixels.
        width: Pixels.
        colour: `grey` reduces to luminance first; the three channels are then equal.
        resize: `stretch` ignores the aspect ratio, `crop` cuts the centre to it first.
        mean: Per channel, on a scale of 0 to 1; subtracted inside the graph.
        std: Per channel, on the same scale; divided by inside the graph.
    """

    height: Annotated[int, Field(ge=8, le=4096)]
    width: Annotated[int, Field(ge=8, le=4096)]
    colour: Literal["rgb", "grey"] = "rgb"
    resize: Literal["stretch", "crop"] = "stretch"
    mean: tuple[Share, Share, Share]
    std: tuple[
        Annotated[float, Field(gt=0, le=1)],
        Annotated[float, Field(gt=0, le=1)],
        Annotated[float, Field(gt=0, le=1)],
    ]


class Scores(Contract):
    """How well answers fitted labels.

    Attributes:
        images: How many were asked.
        accuracy: 0 to 1.
        nll: Mean negative log-likelihood of the true class, nats.
    """

    images: Annotated[int, Field(ge=1)]
    accuracy: Share
    nll: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Member(Contract):
    """One trained classifier, as `member.json` states it.

    What is known of its training is None where its weights came from elsewhere.

    Attributes:
        version: Of this format.
        name: Of the folder, the Triton model and the metric label.
        arch: What `timm.create_model` takes.
        checkpoint: File with the weights (safetensors), relative to `member.json`.
        sha256: Of that file.
        classes: Names, in the order of the outputs.
        image: What it was trained on.
        parameters: How many weights it has.
        seed: What its training drew from.
        precision: Arithmetic of its training.
        epochs: How many it saw.
        best_epoch: The one whose weights were kept, from 1.
        validation: Its scores on the run's validation images.
    """

    version: Literal[1] = 1
    name: Name
    arch: Text
    checkpoint: Text = "checkpoint.safetensors"
    sha256: Sha256
    classes: Classes
    image: ImageSpec
    parameters: Annotated[int, Field(ge=1)]
    seed: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    validation: Scores | None = None


class Voting(Contract):
    """How members' answers become one.

    Attributes:
        mode: Soft votes average probabilities, hard votes count winners, stacked ones ask a logistic regression.
        weights: One per member, in their order; together 1. Equal where the vote is stacked.
        temperature: Applied after averaging or stacking.
        tie_rule: What decides a hard vote's tie, in words; there is one rule.
        coefficients: Of stacking, `[classes][members * classes]`, on log-probabilities, the first member's first.
        intercepts: Of stacking, one per class.
        prior_ratio: One per class: its share among the images to be served over that among those the vote was fitted
            on; applied to the tempered vote. None where both are alike.
    """

    mode: Literal["soft", "hard", "stack"] = "soft"
    weights: tuple[Share, ...]
    temperature: Scale = 1.0
    tie_rule: Literal["higher soft vote, then lower class index"] = "higher soft vote, then lower class index"
    coefficients: tuple[tuple[Coefficient, ...], ...] | None = None
    intercepts: tuple[Coefficient, ...] | None = None
    prior_ratio: tuple[Scale, ...] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Voting:
        if not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"weights add up to {sum(self.weights)}, not to 1")
        stacked = self.coefficients is not None, self.intercepts is not None
        if self.mode == "stack" and not all(stacked):
            raise ValueError("a stacked vote needs coefficients and intercepts")
        if self.mode != "stack" and any(stacked):
            raise ValueError(f"coefficients and intercepts are of stacked votes, this is a {self.mode} one")
        if self.mode == "hard" and self.prior_ratio is not None:
            raise ValueError("prior_ratio corrects probabilities, and a hard vote's shares are none")
        return self


class Conformal(Contract):
    """Class-conditional conformal prediction sets.

    Attributes:
        alpha: The stated share of true classes that a set may miss, per class.
        quantiles: One per class: the largest `1 - probability` that stays in the set.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)]
    quantiles: tuple[Share, ...]


class Review(Contract):
    """When an answer goes to a person.

    Attributes:
        threshold: Winners less probable than this go.
        risk: The share of wrong answers among those that don't, as wished for when the threshold was chosen.
    """

    threshold: Share = 0.0
    risk: Share | None = None


class FittedOn(Contract):
    """What the numbers of an ensemble rest on.

    Attributes:
        data: As it was named to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        images: Counts by split.
    """

    data: Text
    fingerprint: Sha256
    images: dict[Literal["train", "validation", "test"], int]


class Baseline(Contract):
    """What the ensemble answered to the validation images: what a server's answers are compared with, to see drift.

    Attributes:
        images: How many were asked.
        class_shares: Of the answers by winning class, one per class, together 1.
        confidence_limits: Rising, between 0 and 1: upper limits of the bins of the winner's probability but the last.
        confidence_shares: Of the answers by bin, one more than limits, together 1.
        review_share: Of the answers that a person should look at.
        dissent_shares: Of the answers that a member differs from, one per member.
    """

    images: Annotated[int, Field(ge=1)]
    class_shares: tuple[Share, ...]
    confidence_limits: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
    confidence_shares: tuple[Share, ...]
    review_share: Share
    dissent_shares: tuple[Share, ...]

    @model_validator(mode="after")
    def _parts_agree(self) -> Baseline:
        if list(self.confidence_limits) != sorted(set(self.confidence_limits)):
            raise ValueError("confidence_limits must rise")
        if len(self.confidence_shares) != len(self.confidence_limits) + 1:
            shares, limits = len(self.confidence_shares), len(self.confidence_limits)
            raise ValueError(f"{shares} confidence_shares for the bins that {limits} confidence_limits make")
        return self


class Ensemble(Contract):
    """Members, how they vote and what that was fitted on, as `ensemble.json` states it.

    Attributes:
        version: Of this format.
        name: In metrics and reports.
        classes: Names, in the order of the outputs.
        image: What all members expect.
        members: In the order of `voting.weights` and of `MEMBER_PROBABILITIES`; `checkpoint` is relative to the
            member's own folder, `members/NAME`.
        voting: How they vote.
        conformal: Prediction sets, or None for the winner alone.
        review: When a person should look.
        patient_rule: How the answers to a patient's images become one, for those who know whose images they are: a
            server answers images. None where the fit knew no patient.
        data: What all this was fitted on.
        scores: By split: the ensemble's own. A stacked vote's validation images are answered by regressions that have
            not seen them; with a prior ratio, each image counts as many times as that of its class.
        baseline: What was answered at the fit, likewise counted; None where a fit did not write it down.
    """

    version: Literal[1] = 1
    name: Name
    classes: Classes
    image: ImageSpec
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    voting: Voting
    conformal: Conformal | None = None
    review: Review = Review()
    patient_rule: PatientRule | None = None
    data: FittedOn
    scores: dict[Literal["validation", "test"], Scores]
    baseline: Baseline | None = None

    @property
    def rule(self) -> VotingRule:
        """The numbers that `plurum.voting.decide` takes."""
        return rule_from_ensemble(self.model_dump())

    @model_validator(mode="after")
    def _parts_agree(self) -> Ensemble:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"two members share a name: {', '.join(names)}")
        if reserved := RESERVED_NAMES.intersection(names):
            raise ValueError(f"a member is called {min(reserved)!r}, which a model repository keeps for itself")
        for member in self.members:
            if member.classes != self.classes or member.image != self.image:
                raise ValueError(f"member {member.name!r} has other classes or another image spec than the ensemble")
        if len(self.voting.weights) != len(self.members):
            raise ValueError(f"{len(self.voting.weights)} weights for {len(self.members)} members")
        self._check_shapes()
        if self.conformal is not None and len(self.conformal.quantiles) != len(self.classes):
            raise ValueError(f"{len(self.conformal.quantiles)} quantiles for {len(self.classes)} classes")
        self._check_baseline()
        return self

    def _check_baseline(self) -> None:
        """Make sure that the baseline is of this ensemble's classes and members."""
        if self.baseline is None:
            return
        if len(self.baseline.class_shares) != len(self.classes):
            raise ValueError(f"{len(self.baseline.class_shares)} class shares for {len(self.classes)} classes")
        if len(self.baseline.dissent_shares) != len(self.members):
            raise ValueError(f"{len(self.baseline.dissent_shares)} dissent shares for {len(self.members)} members")

    def _check_shapes(self) -> None:
        """Make sure that what the vote holds per class and member is of this ensemble's."""
        classes, columns = len(self.classes), len(self.members) * len(self.classes)
        for row in self.voting.coefficients or ():
            if len(row) != columns:
                raise ValueError(f"{len(row)} coefficients in a row for {columns} probabilities of all members")
        for name in ("coefficients", "intercepts", "prior_ratio"):
            values = getattr(self.voting, name)
            if values is not None and len(values) != classes:
                raise ValueError(f"{len(values)} {name.replace('_', ' ')} for {classes} classes")


def version_from_release(tag: str) -> int:
    """Return Triton's version of what answers publicly for a release: its tag as a number; 1 for what has no tag.

    Triton says with every answer which version it is of, through an ensemble and over both protocols.
    """
    return int(tag, 16) if _TAG.fullmatch(tag) else 1


def release_from_version(version: str) -> str | None:
    """Return the tag of the release that an answer of this version is of; None where it tells of none."""
    return f"{int(version):08x}" if version.isascii() and version.isdigit() and 1 < int(version) < 1 << 32 else None


_C = TypeVar("_C", bound=Contract)


def read_ensemble(path: Path) -> Ensemble:
    """Return the ensemble that the file `path` states.

    Raises:
        ContractError: missing, not JSON, or not of this format.
    """
    return _read(path, Ensemble)


def read_member(path: Path) -> Member:
    """Return the member that the file `path` states.

    Raises:
        ContractError: missing, not JSON, or not of this format.
    """
    return _read(path, Member)


def write_contract(path: Path, contract: Contract) -> None:
    """Write `contract` to `path` as indented JSON, whole or not at all."""
    write_text(path, contract.model_dump_json(indent=2) + "\n")


def _read(path: Path, kind: type[_C]) -> _C:
    try:
        return kind.model_validate_json(read_regular(path))
    except OSError as error:
        raise ContractError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {re.sub('^Value error, ', '', fault['msg'])}"
            for fault in error.errors(include_url=False)
        )
        raise ContractError(f"{path} is no {kind.__name__.lower()} contract of version 1: {faults}") from error
