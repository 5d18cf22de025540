"""The prediction of a served ensemble for one image, and its conversion from tensors, to arrays, and to JSON.

Legend: C classes, M members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import ServerError
from plurum.predictions.outputs import OUTPUTS, VOTED, Output
from plurum.voting import REVIEW_REASONS, Verdict

__all__ = ["Prediction", "numbers_from_prediction", "predictions_from_tensors", "verdict_from_predictions"]


@dataclass(frozen=True)
class Prediction:
    """The ensemble's prediction for one image.

    Attributes:
        label: Decided class: the decision at the operating point, else the most probable class.
        confidence: Probability of the label, 0 to 1.
        probabilities: Probabilities by class, which sum to 1.
        entropy: Predictive entropy in nats, 0 to log(classes).
        disagreement: Mutual information between prediction and member in nats, 0 if all members agree.
        std: Standard deviation of the probabilities over members by class, 0 to 0.5.
        member_probabilities: Probabilities by member, then by class; None for a member that did not run, because a
            cascade settled the image before.
        prediction_set: Classes that can't be ruled out at the fitted risk; never empty.
        review: True if the prediction needs review.
        release: Tag of the release that made the prediction, with `plurum serve --releases`. None without releases, and
            while a release is on trial, because the response does not tell which of the two made it.
        audit: True if drawn for audit, whatever the prediction; None if the server draws none.
        outlier: P-value of the outlier test, 0 to 1, low if the image is unlike the reference images; None if the
            server tests none.
        review_reason: Reasons for review: `confidence` (or the operating point instead), `set` (several classes can't
            be ruled out) and `outlier`; None if the server tests no outliers.
        members_used: Members that ran; `disagreement` and `std` are over them. None if the server has no cascade.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    entropy: float
    disagreement: float
    std: dict[str, float]
    member_probabilities: dict[str, dict[str, float] | None]
    prediction_set: tuple[str, ...]
    review: bool
    # Newer fields have a default: an older server does not send them, and an older review store lacks them.
    release: str | None = None
    audit: bool | None = None
    outlier: float | None = None
    review_reason: tuple[str, ...] | None = None
    members_used: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values."""
        # `asdict` would copy every number separately.
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prediction:
        """Return the prediction that `to_dict` wrote, also in another version: unknown keys are ignored.

        Raises:
            TypeError: a value without a default is missing.
        """
        known: dict[str, Any] = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        return cls(**known | {name: tuple(value) for name, value in known.items() if isinstance(value, list)})


_REQUIRED = {one.name for one in fields(Prediction) if one.default is MISSING}


def predictions_from_tensors(
    tensors: Mapping[str, npt.NDArray[Any]],
    classes: Sequence[str],
    members: Sequence[str],
    batch: int,
    release: str | None = None,
) -> list[Prediction]:
    """Return one prediction per image of a batch.

    Args:
        tensors: Output tensors by name.
        classes: Class names, in the order of the outputs.
        members: Member names, in the order of the outputs.
        batch: Number of images.
        release: Tag of the release that made the predictions; None if unknown.

    Raises:
        ServerError: an output is missing, or its shape does not match the names.
    """
    columns: dict[str, list[Any]] = {}
    for name, output in OUTPUTS.items():
        if name not in tensors and output.field not in _REQUIRED:
            continue
        expected = (batch, *output.shape(len(classes), len(members)))
        if name not in tensors or tensors[name].shape != expected:
            got = f"shape {list(tensors[name].shape)}" if name in tensors else "no such output"
            raise ServerError(
                f"the server's output {name}: expected shape {list(expected)}, got {got}. Use a server of Plurum."
            )
        columns[output.field] = _column(output, tensors[name].tolist(), classes, members)
    columns["confidence"] = _confidences(columns["label"], tensors["PROBABILITIES"], classes)
    rows = zip(*columns.values(), strict=True)
    return [Prediction(**dict(zip(columns, row, strict=True)), release=release) for row in rows]


def verdict_from_predictions(predictions: Sequence[Prediction], classes: Sequence[str]) -> Verdict:
    """Return predictions as arrays; labels become indices of `classes`.

    Raises:
        ValueError: a label is not in `classes`.
    """
    rows = [numbers_from_prediction(one, classes) for one in predictions]
    arrays = {output.field: np.array([row[output.field] for row in rows]) for output in VOTED.values()}
    outlier = np.array([1.0 if one.outlier is None else one.outlier for one in predictions])
    reasons = np.array([_bits_from_reasons(one) for one in predictions], dtype=np.uint8)
    return Verdict(**arrays, outlier=outlier, review_reason=reasons)


def numbers_from_prediction(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """Return every output of the vote by its field, as numbers without names: a label as its index in `classes`.

    Raises:
        ValueError: the label is not in `classes`.
    """
    values = {output.field: _numbers(getattr(prediction, output.field)) for output in VOTED.values()}
    unused = [0.0] * len(prediction.probabilities)
    values["member_probabilities"] = [unused if row is None else row for row in values["member_probabilities"]]
    inside = [name in prediction.prediction_set for name in prediction.probabilities]
    return values | {"label": classes.index(prediction.label), "prediction_set": inside}


def _column(output: Output, rows: list[Any], classes: Sequence[str], members: Sequence[str]) -> list[Any]:
    """Return an output's values for each image, with names instead of positions."""
    if output.dims == ("M", "C"):
        by_member = (dict(zip(members, row, strict=True)) for row in rows)
        # Probabilities sum to 1, or are NaN: only a member that did not run has zeros.
        return [
            {name: _by_class(values, classes) if any(values) else None for name, values in one.items()}
            for one in by_member
        ]
    if output.dims == ("M",):
        return [tuple(compress(members, row)) for row in rows]
    if output.dims == ("C",):
        return [tuple(compress(classes, row)) if output.datatype == "BOOL" else _by_class(row, classes) for row in rows]
    if output.datatype == "UINT8":
        return [tuple(name for bit, name in enumerate(REVIEW_REASONS) if row[0] >> bit & 1) for row in rows]
    return [row[0].decode("utf-8", "replace") if output.datatype == "BYTES" else row[0] for row in rows]


def _bits_from_reasons(prediction: Prediction) -> int:
    """Return the reasons for review as bits; a review without stated reasons counts as one for confidence."""
    if prediction.review_reason is None:
        return int(prediction.review)
    return sum(1 << bit for bit, name in enumerate(REVIEW_REASONS) if name in prediction.review_reason)


def _confidences(labels: Sequence[str], probabilities: npt.NDArray[Any], classes: Sequence[str]) -> list[float]:
    """Return the probabilities of the labels; if the server hides the class names, the highest of all."""
    places = {name: index for index, name in enumerate(classes)}
    highest = probabilities.argmax(axis=1).tolist()
    found = [places.get(label, most) for label, most in zip(labels, highest, strict=True)]
    return list(probabilities[np.arange(len(found)), found].tolist())


def _by_class(values: Iterable[float], classes: Sequence[str]) -> dict[str, float]:
    return dict(zip(classes, values, strict=True))


def _numbers(value: Any) -> Any:
    return [_numbers(one) for one in value.values()] if isinstance(value, dict) else value
