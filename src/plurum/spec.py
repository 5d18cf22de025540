"""Schemas of member.json and ensemble.json: inputs, outputs and vote of the members.

`member.json` lies beside a member's weights, `ensemble.json` at the top of a run and of a model repository. Export,
server, client and benchmarks read them, so that no constant is defined twice.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from plurum.conventions import PatientRule
from plurum.errors import MetadataError, PlurumError
from plurum.files import write_text
from plurum.regular_files import read_regular
from plurum.voting import MODES, VotingRule, rule_from_ensemble

__all__ = [
    "IMAGE",
    "INPUT_PIXELS",
    "LOGITS",
    "RESERVED_NAMES",
    "Baseline",
    "Conformal",
    "DecisionPromise",
    "Ensemble",
    "FittedOn",
    "ImageSpec",
    "Member",
    "Metadata",
    "OperatingPoint",
    "PatientRule",
    "Review",
    "ReviewPromise",
    "Scores",
    "SiteCalibration",
    "Voting",
    "read_ensemble",
    "read_member",
    "read_metadata",
    "release_from_version",
    "version_from_release",
    "write_metadata",
]

# Tensor names in requests, and of the members' outputs; `plurum.predictions.outputs` has those of the ensemble.
IMAGE = "IMAGE"
INPUT_PIXELS = "PIXELS"
LOGITS = "LOGITS"
# Model names in a repository that no member may take.
RESERVED_NAMES = frozenset({"ensemble", "ensemble_pixels", "ensemble_fused", "fused", "labels", "preprocess", "voter"})

_TAG = re.compile(r"[0-9a-f]{8}")
# A name becomes a folder, a Triton model and a metric label.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


def _moderate(value: float) -> float:
    # Wider than the range of any fit; beyond it, the vote would overflow to NaN.
    if value and not 1e-100 <= abs(value) <= 1e100:
        raise ValueError(f"expected an absolute value between 1e-100 and 1e100, got {value}")
    return value


Scale = Annotated[Positive, AfterValidator(_moderate)]
Coefficient = Annotated[FiniteFloat, AfterValidator(_moderate)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a class is named twice: {', '.join(names)}")
    return names


Classes = Annotated[tuple[Text, ...], Field(min_length=2), AfterValidator(_distinct)]


class Metadata(BaseModel):
    """Base class of schemas: instances are frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ImageSpec(Metadata):
    """Input of a member: size, colour and normalisation; `plurum.images` implements it.

    Attributes:
        height: Height in pixels.
        width: Width in pixels.
        colour: Colour mode; `grey` converts to luminance, so that the three channels are equal.
        resize: Resize rule; `stretch` ignores the aspect ratio, `crop` crops the centre to it first.
        mean: Per-channel mean that the graph subtracts, on a scale of 0 to 1.
        std: Per-channel standard deviation that the graph divides by, on a scale of 0 to 1.
    """

    height: Annotated[int, Field(ge=8, le=4096)]
    width: Annotated[int, Field(ge=8, le=4096)]
    colour: Literal["rgb", "grey"] = "rgb"
    resize: Literal["stretch", "crop"] = "stretch"
    mean: tuple[Share, Share, Share]
    std: tuple[
        Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]
    ]

    @property
    def resizing(self) -> dict[str, Any]:
        """Keyword arguments of `plurum.images.pixels_from_image`."""
        return {"height": self.height, "width": self.width, "colour": self.colour, "resize": self.resize}


class Scores(Metadata):
    """Scores of predictions against labels.

    Attributes:
        images: Number of images.
        accuracy: Fraction of correct predictions, 0 to 1.
        nll: Mean negative log-likelihood of the true class, in nats.
    """

    images: Annotated[int, Field(ge=1)]
    accuracy: Share
    nll: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Member(Metadata):
    """Metadata of a trained classifier, stored in `member.json`.

    Attributes about the training are None if the weights come from elsewhere.

    Attributes:
        version: Version of this format.
        name: Name of the member, used for its folder, its Triton model and its metric label.
        arch: Architecture for `timm.create_model`.
        checkpoint: File with the weights (safetensors), relative to `member.json`.
        sha256: SHA-256 of the checkpoint.
        classes: Class names, in the order of the outputs.
        image: Image spec of the training.
        parameters: Number of weights.
        seed: Random seed of the training.
        precision: Arithmetic of the training.
        epochs: Number of epochs trained.
        best_epoch: Epoch whose weights were kept, from 1.
        validation: Scores on the run's validation images.
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


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


class Voting(Metadata):
    """Vote that combines the members' outputs.

    Attributes:
        mode: Voting mode, see `plurum.voting.MODES`.
        weights: Weights of the members, which sum to 1; equal if the vote is stacked.
        temperature: Temperature applied to the vote's probabilities.
        tie_rule: Rule for ties of a hard vote; there is only one.
        coefficients: Stacking coefficients of log-probabilities, `[classes][members * classes]`, the first member's
            classes first.
        intercepts: Stacking intercepts, one per class.
        prior_ratio: Ratio of each class's fraction in production to its fraction in the fitting data, applied to the
            tempered vote; None if they are equal. With a site, the exponentials of its offsets are factors of it.
    """

    mode: Annotated[str, AfterValidator(_check_mode)] = "soft"
    weights: tuple[Share, ...]
    temperature: Scale = 1.0
    tie_rule: Literal["higher soft vote, then lower class index"] = "higher soft vote, then lower class index"
    coefficients: tuple[tuple[Coefficient, ...], ...] | None = None
    intercepts: tuple[Coefficient, ...] | None = None
    prior_ratio: tuple[Scale, ...] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Voting:
        if not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"weights: expected a sum of 1, got {sum(self.weights)}")
        mode = MODES[self.mode]
        for name in {name for one in MODES.values() for name in one.parameters}:
            if (getattr(self, name) is not None) != (name in mode.parameters):
                names = " and ".join(mode.parameters) or "no coefficients or intercepts"
                raise ValueError(f"{name}: mode {self.mode} needs {names}")
        if not mode.has_probabilities and self.prior_ratio is not None:
            raise ValueError(f"prior_ratio: not supported with mode {self.mode}, whose votes are not probabilities")
        return self


class Conformal(Metadata):
    """Class-conditional conformal prediction sets.

    Attributes:
        alpha: Target fraction of sets that miss the true class, per class.
        quantiles: Largest `1 - probability` at which a class stays in the set, one per class.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)]
    quantiles: tuple[Share, ...]


class Review(Metadata):
    """Condition under which a prediction needs review.

    Attributes:
        threshold: Confidence below which a prediction needs review.
        risk: Target error rate of the other predictions, for which the threshold was chosen.
    """

    threshold: Share = 0.0
    risk: Share | None = None


Cost = Annotated[float, Field(ge=0, le=1e100, allow_inf_nan=False)]


class OperatingPoint(Metadata):
    """Decision that the labels of an ensemble state.

    With two classes, the label is the positive class if its probability is at least the threshold. With several, it is
    the class with the lowest expected cost. Without an operating point, the label is the most probable class.

    Attributes:
        criterion: Criterion that chose the point.
        value: Requested sensitivity, specificity or negative predictive value (`npv`); None for costs.
        confidence: Confidence with which the requested value holds for patients like those of the fit; None for costs.
        positive: Positive class; None with several classes.
        threshold: Probability of the positive class from which the label is positive; None with several classes.
        review_interval: Lowest and highest probability of the positive class at which a prediction needs review; None
            reviews none. Two classes use it instead of `Review.threshold` and of the size of prediction sets.
        costs: Cost of each decision, `[true class][decided class]`, in the order of the classes; None unless costs
            chose the point.
        review_cost: Cost of a review, in the unit of `costs`. With several classes, a prediction whose expected cost is
            higher needs review, instead of by threshold and prediction set.
    """

    criterion: Literal["sensitivity", "specificity", "npv", "costs"]
    value: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    positive: Text | None = None
    threshold: Share | None = None
    review_interval: tuple[Share, Share] | None = None
    costs: tuple[tuple[Cost, ...], ...] | None = None
    review_cost: Cost | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> OperatingPoint:
        if (self.positive is None) != (self.threshold is None):
            raise ValueError("positive: expected a positive class together with a threshold, got one of them")
        has_costs = self.criterion == "costs"
        if has_costs != (self.costs is not None) or has_costs == (self.value is not None):
            raise ValueError(f"criterion: {self.criterion} needs {'costs and no value' if has_costs else 'a value'}")
        if self.review_cost is not None and self.costs is None:
            raise ValueError("review_cost: expected costs beside it")
        if self.positive is None and (self.costs is None or self.review_interval is not None):
            raise ValueError("positive: expected a positive class, or costs of several classes without review_interval")
        if self.review_interval is not None and self.threshold is not None:
            low, high = self.review_interval
            if not low <= self.threshold <= high:
                raise ValueError(f"review_interval: expected an interval around {self.threshold}, got {low} to {high}")
        return self

    def faults(self, classes: tuple[str, ...]) -> list[str]:
        """Return the contradictions between the point and the classes of its ensemble, in words."""
        number, found = len(classes), []
        if (self.positive is not None) != (number == 2):
            found.append(f"expected {'a' if number == 2 else 'no'} positive class for {number} classes")
        elif self.positive is not None and self.positive not in classes:
            found.append(f"unknown positive class {self.positive!r}; available: {', '.join(classes)}")
        if self.costs is not None and {len(self.costs), *map(len, self.costs)} != {number}:
            found.append(f"costs: expected {number} rows of {number} for {number} classes")
        return found


class DecisionPromise(Metadata):
    """Lower limit on the requested value of an operating point, for new patients like those that it was certified on.

    Attributes:
        criterion: Quantity that is at least `value`.
        value: Requested value of the operating point.
        patients: Certification patients whom the value is about.
        errors: Sum over these patients of the fractions of wrong decisions.
        p_value: P-value of the hypothesis that the value is lower.
    """

    criterion: Literal["sensitivity", "specificity", "npv"]
    value: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    patients: Annotated[int, Field(ge=1)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p_value: Share


class ReviewPromise(Metadata):
    """Upper limit on the review risk of new patients like those that it was certified on.

    The review risk is the mean, over patients with at least one unreviewed prediction, of the fraction of these
    predictions that are wrong.

    Attributes:
        risk: Largest review risk.
        confidence: Probability with which the promise holds.
        patients: Certification patients with an unreviewed prediction.
        errors: Sum over these patients of the fractions of wrong predictions.
        p_value: P-value of the hypothesis that the review risk is higher.
        status: `provisional` until export has repeated the test with the predictions that are served.
        method: `sequence` tested review limits in order for a requested risk; `bound` promises the upper bound of a
            single limit.
        decision: Promise on the operating point that holds together with this one; None without a requested value.
    """

    risk: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    patients: Annotated[int, Field(ge=1)]
    errors: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p_value: Share
    status: Literal["provisional", "certified"] = "provisional"
    method: Literal["sequence", "bound"] = "sequence"
    decision: DecisionPromise | None = None


class SiteCalibration(Metadata):
    """Site that a vote was calibrated on, after its fit.

    Attributes:
        name: Name of the site.
        data: Data source as given to `plurum calibrate`.
        fingerprint: SHA-256 over pixels and labels.
        images: Number of labelled images.
        patients: Number of patients; an image of an unknown patient counts as one.
        strength: Strength of the shrinkage towards the fit's calibration: the precision of each offset's prior; None if
            temperature and prior ratio stayed.
        fit: SHA-256 of the `ensemble.json` that was calibrated.
    """

    name: Name
    data: Text
    fingerprint: Sha256
    images: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    strength: Positive | None
    fit: Sha256


class FittedOn(Metadata):
    """Data that an ensemble was fitted on.

    Attributes:
        data: Data source as given to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        images: Number of images by split.
    """

    data: Text
    fingerprint: Sha256
    images: dict[Literal["train", "validation", "test"], int]


class Baseline(Metadata):
    """Statistics of the predictions for validation images, the reference for detecting drift of a server.

    Attributes:
        images: Number of images.
        class_shares: Fraction of predictions by class, one per class, which sum to 1.
        confidence_limits: Upper limits of all bins of confidence but the last, increasing, between 0 and 1.
        confidence_shares: Fraction of predictions by bin, one more than limits, which sum to 1.
        review_share: Fraction of predictions that need review.
        dissent_shares: Fraction of predictions that a member disagrees with, one per member.
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
            raise ValueError("confidence_limits must increase")
        if len(self.confidence_shares) != len(self.confidence_limits) + 1:
            shares, limits = len(self.confidence_shares), len(self.confidence_limits)
            raise ValueError(f"confidence_shares: expected {limits + 1} for {limits} confidence_limits, got {shares}")
        return self


# Keys of ensemble.json that version 1 lacks.
_NEWER = ("operating_point", "promise", "audit_rate", "site")


class Ensemble(Metadata):
    """Members, their vote and the data it was fitted on, stored in `ensemble.json`.

    Attributes:
        version: Version of this format: 2 with keys that version 1 lacks, such as an operating point, else 1.
        name: Name in metrics and reports.
        classes: Class names, in the order of the outputs.
        image: Image spec of all members.
        members: Members in the order of `voting.weights` and of `MEMBER_PROBABILITIES`; `checkpoint` is relative to the
            member's own folder, `members/NAME`.
        voting: Vote of the members.
        conformal: Prediction sets; None returns the predicted class alone.
        review: Condition for review.
        patient_rule: Rule that clients use to combine the predictions of a patient's images, as a server predicts
            single images; None if the fit knew no patients.
        data: Data of the fit.
        scores: Scores of the ensemble by split. A stacked vote predicts validation images by cross-validation. With a
            prior ratio, each image is weighted by the ratio of its class.
        baseline: Statistics of the validation predictions, weighted in the same way; None in older files.
        operating_point: Decision that the labels state; None is the most probable class. Absent in files if None.
        promise: Limit on the review risk of new patients; None promises nothing. Absent in files if None.
        audit_rate: Probability with which the server draws a patient, or an image, for audit; None draws none. Absent
            in files if None.
        site: Site that temperature, prior ratio, sets and review were calibrated on; None if only on validation images.
            Then `scores` are empty, and `baseline` is of the site's images. Absent in files if None.
    """

    version: Literal[1, 2] = 1
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
    operating_point: OperatingPoint | None = None
    promise: ReviewPromise | None = None
    audit_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    site: SiteCalibration | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer keys that are None, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if name not in _NEWER or value is not None}

    @property
    def rule(self) -> VotingRule:
        """Voting rule for `plurum.voting.decide`."""
        return rule_from_ensemble(self.model_dump())

    def with_promise(self, promise: ReviewPromise | None) -> Ensemble:
        """Return the ensemble with another promise, or without one."""
        newer = [promise, *(getattr(self, name) for name in _NEWER if name != "promise")]
        version = 1 if all(value is None for value in newer) else 2
        return self.model_copy(update={"promise": promise, "version": version})

    @model_validator(mode="after")
    def _parts_agree(self) -> Ensemble:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"two members share a name: {', '.join(names)}")
        if reserved := RESERVED_NAMES.intersection(names):
            raise ValueError(f"member name {min(reserved)!r} is reserved in model repositories")
        for member in self.members:
            if member.classes != self.classes or member.image != self.image:
                raise ValueError(f"classes or image spec of member {member.name!r} differ from the ensemble's")
        if len(self.voting.weights) != len(self.members):
            raise ValueError(f"{len(self.voting.weights)} weights for {len(self.members)} members")
        self._check_shapes()
        if self.conformal is not None and len(self.conformal.quantiles) != len(self.classes):
            raise ValueError(f"{len(self.conformal.quantiles)} quantiles for {len(self.classes)} classes")
        self._check_baseline()
        self._check_point()
        self._check_promise()
        return self

    def _check_point(self) -> None:
        """Check the operating point, and that the file's version covers its keys."""
        point = self.operating_point
        expected = 2 if any(getattr(self, name) is not None for name in _NEWER) else 1
        if self.version != expected:
            raise ValueError(f"version: expected {expected} for these keys, got {self.version}")
        if point is None:
            return
        if not MODES[self.voting.mode].has_probabilities:
            raise ValueError(f"operating_point: not supported with mode {self.voting.mode}, which has no probabilities")
        if faults := point.faults(self.classes):
            raise ValueError(f"operating_point: {'; '.join(faults)}")

    def _check_promise(self) -> None:
        """Check that a promise on the operating point is about the one that the ensemble has."""
        promised, point = self.promise and self.promise.decision, self.operating_point
        if promised and (promised.criterion, promised.value) != (point and (point.criterion, point.value)):
            raise ValueError(
                f"promise: expected the value of the operating point, got {promised.criterion} {promised.value}"
            )

    def _check_baseline(self) -> None:
        """Check that the baseline matches the numbers of classes and members."""
        if self.baseline is None:
            return
        if len(self.baseline.class_shares) != len(self.classes):
            raise ValueError(f"{len(self.baseline.class_shares)} class shares for {len(self.classes)} classes")
        if len(self.baseline.dissent_shares) != len(self.members):
            raise ValueError(f"{len(self.baseline.dissent_shares)} dissent shares for {len(self.members)} members")

    def _check_shapes(self) -> None:
        """Check that the vote's parameters match the numbers of classes and members."""
        classes, columns = len(self.classes), len(self.members) * len(self.classes)
        for row in self.voting.coefficients or ():
            if len(row) != columns:
                raise ValueError(f"{len(row)} coefficients in a row for {columns} probabilities of all members")
        for name in ("coefficients", "intercepts", "prior_ratio"):
            values = getattr(self.voting, name)
            if values is not None and len(values) != classes:
                raise ValueError(f"{len(values)} {name.replace('_', ' ')} for {classes} classes")


def version_from_release(tag: str) -> int:
    """Return the Triton model version for a release: its tag as a number, or 1 without a tag.

    Triton reports the version with every response, through an ensemble and over both protocols.
    """
    return int(tag, 16) if _TAG.fullmatch(tag) else 1


def release_from_version(version: str) -> str | None:
    """Return the release tag for a Triton model version; None if it does not encode one."""
    return f"{int(version):08x}" if version.isascii() and version.isdigit() and 1 < int(version) < 1 << 32 else None


_M = TypeVar("_M", bound=BaseModel)


def read_ensemble(path: Path) -> Ensemble:
    """Return the ensemble stored in the file `path`.

    Raises:
        MetadataError: the file is missing, not JSON, or not of this format.
    """
    return read_metadata(path, Ensemble, "valid ensemble metadata")


def read_member(path: Path) -> Member:
    """Return the member stored in the file `path`.

    Raises:
        MetadataError: the file is missing, not JSON, or not of this format.
    """
    return read_metadata(path, Member, "valid member metadata")


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Write `metadata` to `path` as indented JSON, atomically."""
    write_text(path, metadata.model_dump_json(indent=2) + "\n")


def read_metadata(path: Path, kind: type[_M], what: str, error: type[PlurumError] = MetadataError, fix: str = "") -> _M:
    """Return the content of a JSON file as a `kind`.

    Args:
        path: The file.
        kind: Model of the content.
        what: Name of the content, for messages.
        error: Exception to raise.
        fix: Advice that ends the message.

    Raises:
        PlurumError: an `error`, because the file is missing, too large, or does not fit `kind`.
    """
    try:
        return kind.model_validate_json(read_regular(path))
    except OSError as fault:
        raise error(f"{path} can't be read: {fault.strerror}{fix}") from fault
    except ValidationError as fault:
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'file'}: {re.sub('^Value error, ', '', one['msg'])}"
            for one in fault.errors(include_url=False)
        )
        raise error(f"{path} is not {what} of version {_versions(kind)}: {faults}{fix}") from fault


def _versions(kind: type[BaseModel]) -> str:
    """Return the versions of a format that this program reads, in words."""
    field = kind.model_fields.get("version")
    return " or ".join(map(str, get_args(field.annotation) if field else ())) or "1"
