"""Types of results: a prediction or a failure for each image, and the description of the served ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plurum.images.windows import WindowRule
from plurum.predictions.prediction import Prediction
from plurum.spec import OperatingPoint, PatientRule, ReviewPromise
from plurum.voting import DecisionPoint

__all__ = ["Answer", "Failure", "Prediction", "Served"]


@dataclass(frozen=True)
class Served:
    """Description of the served ensemble.

    Attributes:
        classes: Class names, in the order of the outputs; "0", "1", … if the server hides its config.
        members: Member names, in the order of the outputs; "0", "1", … if the server hides its config.
        max_batch_size: Maximum number of images in one request.
        pixels_shape: Shape `(height, width, 3)` of raw pixels that the server accepts; None if it accepts none.
        takes_encoded: True if the server accepts JPEG, PNG, TIFF and DICOM images of any size.
        checkpoints: SHA-256 of the members' weights, in their order; empty if the server hides its config.
        patient_rule: Rule that pools the predictions of a patient's images; None if the fit had no patients, or if the
            server hides its config.
        metadata_sha256: SHA-256 of the metadata of classes, members and vote; empty if the server hides its config.
        point: Operating point; None if labels are the most probable class, or if the server hides its config.
        has_audit: True if the server draws patients, or images, for audit.
        audit_rate: Probability with which it draws them; None if it draws none, or if it hides its config.
        has_outliers: True if the server tests for images that are unlike its reference images.
        has_cascade: True if the server runs a cascade, in which not all members run for each image.
        operating_point: Operating point as the fit states it, with the requested value and its confidence; None without
            one, if the server hides its config, or if this version of Plurum can't read it.
        promise: Limit on the review risk of new patients; None without one, if the server hides its config, or if this
            version of Plurum can't read it.
        window: Window, or `full`, that the server applies to grey images of more than 8 bits and DICOM; None if it
            applies none, or if it hides its config.
        name: Name of the ensemble; empty if the server hides its config, or is an older gateway.
    """

    classes: tuple[str, ...]
    members: tuple[str, ...]
    max_batch_size: int
    pixels_shape: tuple[int, int, int] | None
    takes_encoded: bool = True
    checkpoints: tuple[str, ...] = ()
    patient_rule: PatientRule | None = None
    metadata_sha256: str = ""
    point: DecisionPoint | None = None
    has_audit: bool = False
    audit_rate: float | None = None
    has_outliers: bool = False
    has_cascade: bool = False
    operating_point: OperatingPoint | None = None
    promise: ReviewPromise | None = None
    window: WindowRule | None = None
    name: str = ""

    @property
    def contract(self) -> str:
        """Former name of `metadata_sha256`."""
        return self.metadata_sha256


@dataclass(frozen=True)
class Failure:
    """An image without a prediction; other images are not affected.

    Attributes:
        index: Position of the image in the input, from 0.
        name: Path of the image, or `image 3` for an image without one.
        reason: One-line message from the server or the file system.
        fault: `image`, or `server` if the server failed on this image but not on its neighbours.
    """

    index: int
    name: str
    reason: str
    fault: Literal["image", "server"] = "image"

    def to_dict(self) -> dict[str, Any]:
        """Return the reason as `error`."""
        return {"error": self.reason}


Answer = Prediction | Failure
