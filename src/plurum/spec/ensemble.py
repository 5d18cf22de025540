"""Metadata of an ensemble, as `ensemble.json` states them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from plurum.conventions import PatientRule
from plurum.spec.cascade import CascadeRule
from plurum.spec.decisions import Conformal, OperatingPoint, Review, ReviewPromise, Voting
from plurum.spec.fields import Classes, Metadata, Name, Positive, Sha256, Share, Text, read_metadata
from plurum.spec.members import ImageSpec, Member, Scores
from plurum.spec.outliers import OutlierRule
from plurum.voting import MODES, VotingRule, rule_from_ensemble

__all__ = [
    "RESERVED_NAMES",
    "Baseline",
    "Ensemble",
    "FittedOn",
    "SiteCalibration",
    "read_ensemble",
    "read_member",
    "release_from_version",
    "version_from_release",
]

# Model names in a repository that no member may take.
RESERVED_NAMES = frozenset({"ensemble", "ensemble_pixels", "ensemble_fused", "fused", "labels", "preprocess", "voter"})

_TAG = re.compile(r"[0-9a-f]{8}")


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
_NEWER = ("operating_point", "promise", "audit_rate", "site", "outliers", "cascade")


class Ensemble(Metadata):
    """Members, their vote and the data it was fitted on, stored in `ensemble.json`.

    Attributes:
        version: Version of this format: 2 with keys that version 1 lacks, such as an operating point, else 1.
        name: Name in metrics and reports.
        classes: Class names, in the order of the outputs.
        image: Image spec by which images are decoded. Members may have another size, mean and std.
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
        outliers: Test for images that are unlike the reference images; None tests none. Absent in files if None.
        cascade: Stages at which images leave before all members have run; None runs all members for each image. Absent
            in files if None.
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
    outliers: OutlierRule | None = None
    cascade: CascadeRule | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer keys that are None, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if name not in _NEWER or value is not None}

    @property
    def detecting(self) -> tuple[bool, ...]:
        """True for each member that has a detector of outliers."""
        return self.outliers.members if self.outliers else (False,) * len(self.members)

    @property
    def rule(self) -> VotingRule:
        """Voting rule for `plurum.voting.decide`."""
        return rule_from_ensemble(self.model_dump())

    def with_promise(self, promise: ReviewPromise | None) -> Ensemble:
        """Return the ensemble with another promise, or without one."""
        return self._with(promise=promise)

    def with_outliers(self, outliers: OutlierRule | None) -> Ensemble:
        """Return the ensemble with another outlier test, or without one."""
        return self._with(outliers=outliers)

    def with_cascade(self, cascade: CascadeRule | None) -> Ensemble:
        """Return the ensemble with another cascade, or without one."""
        return self._with(cascade=cascade)

    def _with(self, **newer: Metadata | None) -> Ensemble:
        """Return the ensemble with other values of keys that version 1 lacks."""
        values = {name: getattr(self, name) for name in _NEWER} | newer
        version = 1 if all(value is None for value in values.values()) else 2
        return self.model_copy(update={**newer, "version": version})

    @model_validator(mode="after")
    def _parts_agree(self) -> Ensemble:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"two members share a name: {', '.join(names)}")
        if reserved := RESERVED_NAMES.intersection(names):
            raise ValueError(f"member name {min(reserved)!r} is reserved in model repositories")
        for member in self.members:
            if member.classes != self.classes or not member.image.is_decoded_like(self.image):
                raise ValueError(
                    f"classes, colour, resize rule or window of member {member.name!r} differ from the ensemble's"
                )
        if len(self.voting.weights) != len(self.members):
            raise ValueError(f"{len(self.voting.weights)} weights for {len(self.members)} members")
        self._check_shapes()
        if self.conformal is not None and len(self.conformal.quantiles) != len(self.classes):
            raise ValueError(f"{len(self.conformal.quantiles)} quantiles for {len(self.classes)} classes")
        self._check_baseline()
        self._check_point()
        self._check_promise()
        if self.outliers is not None and len(self.outliers.members) != len(self.members):
            raise ValueError(f"outliers: {len(self.outliers.members)} members for {len(self.members)} of the ensemble")
        self._check_cascade()
        return self

    def _check_cascade(self) -> None:
        """Check that the cascade matches the members and the classes."""
        if self.cascade is None:
            return
        if self.voting.mode != "soft":
            raise ValueError(f"cascade: expected a vote with mode soft, got {self.voting.mode}")
        if len(self.cascade.order) != len(self.members):
            raise ValueError(f"cascade: {len(self.cascade.order)} members for {len(self.members)} of the ensemble")
        for stage in self.cascade.stages:
            quantiles = None if stage.conformal is None else stage.conformal.quantiles
            for name, values in (("quantiles", quantiles), ("prior ratios", stage.voting.prior_ratio)):
                if values is not None and len(values) != len(self.classes):
                    raise ValueError(f"cascade: {len(values)} {name} for {len(self.classes)} classes")

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
        by_class = self.promise and self.promise.by_class
        if by_class and tuple(one.name for one in by_class) != self.classes:
            raise ValueError(f"promise: expected classes {', '.join(self.classes)} in by_class")
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
