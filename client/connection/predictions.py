"""Types of predictions, and pure functions that create them from output tensors of gRPC and HTTP.

Legend: C classes, M members; every tensor has a leading batch dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import compress
from typing import Any, Literal

import numpy.typing as npt

from plurum.errors import ServerError
from plurum.spec import OUTPUTS, PatientRule

__all__ = ["Answer", "Failure", "Prediction", "Served", "predictions_from_tensors"]


@dataclass(frozen=True)
class Served:
    """Description of the served ensemble.

    Attributes:
        classes: Class names, in the order of the outputs; "0", "1", … if the server hides its config.
        members: Member names, in the order of the outputs; "0", "1", … if the server hides its config.
        max_batch_size: Maximum number of images in one request.
        pixels_shape: Shape `(height, width, 3)` of raw pixels that the server accepts; None if it accepts none.
        takes_encoded: True if the server accepts JPEG, PNG and TIFF images of any size.
        checkpoints: SHA-256 of the members' weights, in their order; empty if the server hides its config.
        patient_rule: Rule that pools the predictions of a patient's images; None if the fit had no patients, or if the
            server hides its config.
        metadata_sha256: SHA-256 of the metadata of classes, members and vote; empty if the server hides its config.
    """

    classes: tuple[str, ...]
    members: tuple[str, ...]
    max_batch_size: int
    pixels_shape: tuple[int, int, int] | None
    takes_encoded: bool = True
    checkpoints: tuple[str, ...] = ()
    patient_rule: PatientRule | None = None
    metadata_sha256: str = ""

    @property
    def contract(self) -> str:
        """Former name of `metadata_sha256`."""
        return self.metadata_sha256


@dataclass(frozen=True)
class Prediction:
    """The ensemble's prediction for one image.

    Attributes:
        label: Winning class.
        confidence: Probability of the winning class, 0 to 1.
        probabilities: Probabilities by class, which sum to 1.
        entropy: Predictive entropy in nats, 0 to log(classes).
        disagreement: Mutual information between prediction and member in nats, 0 if all members agree.
        std: Standard deviation of the probabilities over members by class, 0 to 0.5.
        member_probabilities: Probabilities by member, then by class.
        prediction_set: Classes that can't be ruled out at the fitted risk; never empty.
        review: True if the prediction needs review.
        release: Tag of the release that made the prediction, with `plurum serve --releases`. None without releases, and
            while a release is on trial, because the response does not tell which of the two made it.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    entropy: float
    disagreement: float
    std: dict[str, float]
    member_probabilities: dict[str, dict[str, float]]
    prediction_set: tuple[str, ...]
    review: bool
    release: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values."""
        # `asdict` would copy every number separately.
        return {one.name: getattr(self, one.name) for one in fields(self)} | {
            "prediction_set": list(self.prediction_set)
        }


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


def predictions_from_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], served: Served, batch: int, release: str | None = None
) -> list[Prediction]:
    """Return one prediction per image of a batch.

    Args:
        tensors: Output tensors by name.
        served: Description of the ensemble.
        batch: Number of images.
        release: Tag of the release that made the predictions; None if unknown.

    Raises:
        ServerError: an output is missing, or its shape does not match `served`.
    """
    sizes = {"C": len(served.classes), "M": len(served.members)}
    for name, (_, dims) in OUTPUTS.items():
        expected = (batch, *(sizes[dim] if isinstance(dim, str) else dim for dim in dims))
        if name not in tensors or tensors[name].shape != expected:
            got = f"shape {list(tensors[name].shape)}" if name in tensors else "no such output"
            raise ServerError(
                f"the server's output {name}: expected shape {list(expected)}, got {got}. Use a server of Plurum."
            )
    columns = {name: tensors[name].tolist() for name in OUTPUTS}
    # In a tie of a hard vote, the winner has the same probability as the other classes of the tie.
    highest = tensors["PROBABILITIES"].max(axis=1).tolist()
    return list(map(partial(_prediction, served, release), highest, *columns.values()))


def _prediction(  # noqa: PLR0913, PLR0917 - one parameter per output, in the order of `OUTPUTS`
    served: Served,
    release: str | None,
    confidence: float,
    probabilities: list[float],
    label: list[bytes],
    entropy: list[float],
    disagreement: list[float],
    std: list[float],
    members: list[list[float]],
    inside: list[bool],
    review: list[bool],
) -> Prediction:
    classes = served.classes
    return Prediction(
        label=label[0].decode("utf-8"),
        confidence=confidence,
        probabilities=dict(zip(classes, probabilities, strict=True)),
        entropy=entropy[0],
        disagreement=disagreement[0],
        std=dict(zip(classes, std, strict=True)),
        member_probabilities={
            name: dict(zip(classes, values, strict=True)) for name, values in zip(served.members, members, strict=True)
        },
        prediction_set=tuple(compress(classes, inside)),
        review=review[0],
        release=release,
    )
