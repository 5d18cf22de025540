"""Create `Served` from a server's model metadata. Pure functions."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from plurum.client.connection.predictions import Served
from plurum.images.windows import WindowRule
from plurum.predictions.outputs import AUDIT, TESTED, USED
from plurum.spec import IMAGE, ImageSpec, OperatingPoint, PatientRule, ReviewPromise
from plurum.spec.fields import Metadata
from plurum.voting import DecisionPoint, point_from_ensemble

__all__ = ["served_from_description"]

Part = TypeVar("Part", bound=Metadata)


def served_from_description(
    config: dict[str, Any], outputs: list[dict[str, Any]], inputs: list[dict[str, Any]], *, encoded: bool
) -> Served:
    """Return the description of the served ensemble.

    The model's config holds the ensemble's metadata. If the server hides its config, names are numbers, and weights and
    vote are unknown.

    Args:
        config: Config of the model that gets the requests, as JSON; empty if the server hides it.
        outputs: Outputs of that model, from Triton's metadata.
        inputs: Inputs of the model that accepts pixels.
        encoded: True if another model accepts encoded images; the model with these inputs may accept them too.

    Raises:
        KeyError: the model was not exported by Plurum.
        ValueError: the outputs have shapes that no model of Plurum has.
    """
    metadata, text = _metadata(config)
    shapes = {output["name"]: [int(size) for size in output.get("shape", ())] for output in outputs}
    rule = metadata.get("patient_rule")
    try:
        classes, members = tuple(metadata["classes"]), metadata["members"]
        names = tuple(member["name"] for member in members)
        # A gateway states only the names.
        checkpoints = tuple(member["sha256"] for member in members if "sha256" in member)
    except (KeyError, TypeError):
        checkpoints, text = (), ""
        names, classes = (tuple(map(str, range(size))) for size in shapes["MEMBER_PROBABILITIES"][-2:])
    return Served(
        classes=classes,
        members=names,
        max_batch_size=int(config.get("max_batch_size", 1)),
        pixels_shape=_pixels_shape(inputs),
        takes_encoded=encoded or any(one["name"] == IMAGE for one in inputs),
        checkpoints=checkpoints,
        patient_rule=rule if rule in get_args(PatientRule) else None,
        metadata_sha256=_sha256(metadata, text) if text else "",
        point=_point(metadata),
        has_audit=AUDIT in shapes,
        audit_rate=metadata.get("audit_rate") if AUDIT in shapes else None,
        has_outliers=set(TESTED) <= set(shapes),
        has_cascade=USED in shapes,
        operating_point=_readable(metadata.get("operating_point"), OperatingPoint),
        promise=_readable(metadata.get("promise"), ReviewPromise),
        window=_window(metadata),
        name=str(metadata.get("name", "")) if text else "",
    )


def _sha256(metadata: dict[str, Any], text: str) -> str:
    """Return the hash of the metadata; a gateway states only parts of them, and the hash of all."""
    stated = metadata.get("metadata_sha256")
    return stated if isinstance(stated, str) and stated else hashlib.sha256(text.encode()).hexdigest()


def _window(metadata: dict[str, Any]) -> WindowRule | None:
    image = _readable(metadata.get("image"), ImageSpec)
    return None if image is None else image.window


def _point(metadata: dict[str, Any]) -> DecisionPoint | None:
    """Return the operating point in the metadata.

    Raises:
        ValueError: this version of Plurum does not know such a point.
    """
    try:
        return point_from_ensemble(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the server's operating point can't be read") from error


def _readable(values: object, kind: type[Part]) -> Part | None:
    """Return a part of the metadata that is only shown; None if there is none, or if another version wrote it."""
    try:
        return None if values is None else kind.model_validate(values)
    except ValidationError:
        return None


def _metadata(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the ensemble's metadata in a config, and its text; both empty if there is none."""
    try:
        text = config["parameters"]["contract"]["string_value"]
        metadata = json.loads(text)
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}, ""
    return (metadata, text) if isinstance(metadata, dict) else ({}, "")


def _pixels_shape(inputs: list[dict[str, Any]]) -> tuple[int, int, int] | None:
    """Return the image shape of the single input if it accepts pixels, else None."""
    try:
        (pixels,) = inputs
        _, height, width, channels = map(int, pixels["shape"])
    except (KeyError, ValueError, TypeError):
        return None
    return height, width, channels
