"""From what a server says of its models to `Served`. Pure functions."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

from plurum.client.connection.predictions import Served
from plurum.spec import IMAGE, PatientRule

__all__ = ["served_from_description"]


def served_from_description(
    config: dict[str, Any], outputs: list[dict[str, Any]], inputs: list[dict[str, Any]], *, encoded: bool
) -> Served:
    """Return what a server serves.

    A config carries the contract. Without one, as where a server keeps its configs to itself, names are numbers, and
    nothing is known of weights and vote.

    Args:
        config: Of the model that is asked, in JSON; empty where it isn't told.
        outputs: Of that model, from its metadata.
        inputs: Of the model that pixels go to.
        encoded: Whether another takes encoded images; the one with these inputs may, too.

    Raises:
        KeyError: the model is none of Plurum's.
        ValueError: likewise.
    """
    contract, text = _contract(config)
    shapes = {output["name"]: [int(size) for size in output.get("shape", ())] for output in outputs}
    rule = contract.get("patient_rule")
    try:
        classes, members = tuple(contract["classes"]), contract["members"]
        names = tuple(member["name"] for member in members)
        # A gateway tells the names alone.
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
        contract=hashlib.sha256(text.encode()).hexdigest() if text else "",
    )


def _contract(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the contract that a config carries, and its text; empty where it has none."""
    try:
        text = config["parameters"]["contract"]["string_value"]
        contract = json.loads(text)
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}, ""
    return (contract, text) if isinstance(contract, dict) else ({}, "")


def _pixels_shape(inputs: list[dict[str, Any]]) -> tuple[int, int, int] | None:
    """Return what the single input takes when that is pixels."""
    try:
        (pixels,) = inputs
        _, height, width, channels = map(int, pixels["shape"])
    except (KeyError, ValueError, TypeError):
        return None
    return height, width, channels
