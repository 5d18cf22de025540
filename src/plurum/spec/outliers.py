"""Metadata of the outlier test: how unlike the reference images an image is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, model_validator

from plurum.spec.fields import Metadata, Sha256, Share

__all__ = ["OutlierRule"]

# Far above the differences of FP32 programs, far below the standard deviation of scores, which is about 1.
_ROUNDING = 1e-3
_Weight = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class OutlierRule(Metadata):
    """Outlier test of an ensemble: a conformal p-value of the members' novelty, against reference images.

    An image's score is the sum of its members' novelty times `weights`. Its p-value is
    `(1 + sum of counts of reference images with this score or a higher one) / (patients + 1)`: hierarchical conformal
    prediction (Lee, Barber & Willett, arXiv 2306.06342). With one image per patient it is the usual p-value of split
    conformal prediction. A small p-value means that the image is unlike the reference images.

    Attributes:
        alpha: P-value below which a prediction needs review; at most this fraction of the images of new patients like
            those of the reference needs review by mistake.
        members: True for each member that has a detector.
        detectors: SHA-256 of each member's `detector.safetensors`; None without a detector.
        weights: Weights of the members' novelty, which sum to 1; 0 without a detector.
        reference: Scores of the reference images, ascending.
        counts: For each reference image, 1 divided by the number of reference images of its patient; None if each
            patient has one image.
        patients: Number of patients of the reference images; an image of an unknown patient counts as one.
        split: Part of the data that the reference images are from; `site` for those of the site that the vote was
            calibrated on. Detectors and weights are fitted on validation images, so that a p-value from them is an
            estimate.
    """

    alpha: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    members: tuple[bool, ...]
    detectors: tuple[Sha256 | None, ...]
    weights: tuple[Share, ...]
    reference: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    counts: tuple[_Weight, ...] | None = None
    patients: Annotated[int, Field(ge=1)]
    split: Literal["calibration", "validation", "site"]

    def with_reference(self, scores: npt.ArrayLike, groups: npt.ArrayLike) -> OutlierRule:
        """Return the rule with another reference.

        Scores are raised by more than programs differ through rounding, so that an image of the reference is at most
        its own score in each of them. This can only raise p-values.

        Args:
            scores: Score of each reference image, `[images]`.
            groups: Group of each image, int64 `[images]`; images of one patient share a group.
        """
        # Shortest text of 32-bit numbers, as graphs compare them: the rule goes to every client.
        values = np.asarray(scores, dtype=np.float64)
        raised = (values + _ROUNDING * np.maximum(1.0, np.abs(values))).astype(np.float32)
        rounded = np.array([float(str(one)) for one in raised])
        order = np.argsort(rounded, kind="stable")
        _, patient_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        counts = None if sizes.max() == 1 else (1 / sizes)[patient_of][order].tolist()
        found = {"reference": rounded[order].tolist(), "counts": counts, "patients": len(sizes)}
        return OutlierRule.model_validate(self.model_dump() | found)

    def of_members(self, members: Sequence[int], alpha: float) -> OutlierRule | None:
        """Return the rule of some members in this order, with equal weights; None if none of them has a detector.

        The rule needs a reference of its own: see `with_reference`.
        """
        detecting = tuple(self.members[member] for member in members)
        if not any(detecting):
            return None
        parts = {
            "alpha": alpha,
            "members": detecting,
            "detectors": tuple(self.detectors[member] for member in members),
            "weights": tuple(has / sum(detecting) for has in detecting),
        }
        return OutlierRule.model_validate({**self.model_dump(), **parts})

    @model_validator(mode="after")
    def _parts_agree(self) -> OutlierRule:
        number = len(self.members)
        if {len(self.detectors), len(self.weights)} != {number}:
            raise ValueError(f"expected {number} detectors and weights, got {len(self.detectors)}, {len(self.weights)}")
        if self.members != tuple(one is not None for one in self.detectors):
            raise ValueError("detectors: expected a hash for each of the members that have a detector, and no other")
        if any(weight and not has for weight, has in zip(self.weights, self.members, strict=True)):
            raise ValueError("weights: expected 0 for members without a detector")
        if not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"weights: expected a sum of 1, got {sum(self.weights)}")
        if list(self.reference) != sorted(self.reference):
            raise ValueError("reference: expected ascending scores")
        self._check_counts()
        return self

    def _check_counts(self) -> None:
        """Check that the counts of a patient's images add up to one patient."""
        images = len(self.reference)
        if self.counts is None:
            if self.patients != images:
                raise ValueError(f"patients: expected {images}, one per reference image, got {self.patients}")
            return
        if len(self.counts) != images:
            raise ValueError(f"counts: expected {images}, one per reference image, got {len(self.counts)}")
        if not math.isclose(sum(self.counts), self.patients, rel_tol=1e-6):
            raise ValueError(f"counts: expected a sum of {self.patients} patients, got {sum(self.counts)}")
