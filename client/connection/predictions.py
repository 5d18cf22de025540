"""What the server answers, typed. Pure functions; gRPC and HTTP share them.

Legend: `classes` and `members` stand for their numbers, C and M; a batch dimension stands in front of every tensor.
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
    """What a server says of its ensemble.

    Attributes:
        classes: Names, in the order of the outputs; "0", "1", … where the server keeps its config to itself.
        members: Likewise.
        max_batch_size: Most images in one request.
        pixels_shape: `(height, width, 3)` of the pixels it takes as they are; None where it takes none.
        takes_encoded: Whether it takes JPEG, PNG and TIFF, of any size.
        checkpoints: SHA-256 of the members' weights, in their order; empty where the server keeps its config to itself.
        patient_rule: How the answers to a patient's images become one; None where the fit knew no patient, or likewise.
        contract: SHA-256 of all that it says of classes, members and vote; empty likewise.
    """

    classes: tuple[str, ...]
    members: tuple[str, ...]
    max_batch_size: int
    pixels_shape: tuple[int, int, int] | None
    takes_encoded: bool = True
    checkpoints: tuple[str, ...] = ()
    patient_rule: PatientRule | None = None
    contract: str = ""


@dataclass(frozen=True)
class Prediction:
    """The ensemble's answer to one image.

    Attributes:
        label: The winning class.
        confidence: Its probability, 0 to 1.
        probabilities: By class; together 1.
        entropy: Predictive entropy in nats, 0 to log(classes).
        disagreement: Mutual information between answer and member in nats, 0 when all members say the same.
        std: By class: standard deviation over members, 0 to 0.5.
        member_probabilities: By member, then by class.
        prediction_set: The classes that can't be ruled out at the fitted risk; never empty.
        review: True when a person should look.
        release: Tag of the release that answered, where `plurum serve --releases` serves it; None where no releases
            are, and while one is on trial, as it can't be told then which of two has answered.
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
        """Return all of it as what JSON can hold."""
        # Not `asdict`, which copies every number by itself.
        return {one.name: getattr(self, one.name) for one in fields(self)} | {
            "prediction_set": list(self.prediction_set)
        }


@dataclass(frozen=True)
class Failure:
    """An image without an answer; the others' answers are not touched by it.

    Attributes:
        index: Its place among all that were asked about, from 0.
        name: Its path, or `image 3` for one that has none.
        reason: In one line, the server's words or those of the file system.
        fault: `image`, or `server` where that failed over this image and has answered about its neighbours.
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
    """Return one prediction per image of a batch from the output tensors by name, and of the release that answered.

    Raises:
        ServerError: an output is missing or has another shape than the contract says.
    """
    sizes = {"C": len(served.classes), "M": len(served.members)}
    for name, (_, dims) in OUTPUTS.items():
        expected = (batch, *(sizes[dim] if isinstance(dim, str) else dim for dim in dims))
        if name not in tensors or tensors[name].shape != expected:
            got = f"of shape {list(tensors[name].shape)}" if name in tensors else "missing"
            raise ServerError(f"the server's output {name} is {got}, {list(expected)} was expected; is it Plurum's?")
    columns = {name: tensors[name].tolist() for name in OUTPUTS}
    # The winner of a hard vote's tie is as probable as those it ties with.
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
