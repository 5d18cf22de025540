"""Triton's tensors as JSON: named as `plurum.client.Prediction` names them.

Legend: C classes, M members; a batch dimension stands in front of every tensor.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from plurum.serving.gateway.triton import Served
from plurum.spec import OUTPUTS, release_from_version

__all__ = ["bytes_from_raw", "predictions_from_response", "values_from_raw"]


def values_from_raw(datatype: str, raw: bytes) -> list[Any]:
    """Return the flat values of an output; BYTES as text."""
    if datatype == "BYTES":
        return [one.decode("utf-8", "replace") for one in bytes_from_raw(raw)]
    # Of another release, outputs may be of types that ours has not.
    return np.frombuffer(raw, triton_to_np_dtype(datatype)).tolist()  # type: ignore[no-any-return]


def bytes_from_raw(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor, each a little-endian length and so many bytes.

    Raises:
        ValueError: the lengths don't add up.
    """
    found, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("a length is cut off")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4 + size
        if at > len(raw):
            raise ValueError("an element is cut off")
        found.append(raw[at - size : at])
    return found


def predictions_from_response(response: Any, served: Served) -> list[dict[str, Any]]:
    """Return one object per image.

    Raises:
        ValueError: classes or members are not those of `served`: another release answered.
    """
    tensors = {
        output.name: values_from_raw(output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if missing := OUTPUTS.keys() - tensors.keys():
        raise ValueError(f"the answer has no {min(missing)}")
    batch, classes, members = len(tensors["LABEL"]), len(served.classes), len(served.members)
    if len(tensors["MEMBER_PROBABILITIES"]) != batch * members * classes:
        raise ValueError("the answer is of another ensemble")
    release = {"release": release_from_version(response.model_version)}
    return [
        _prediction({name: _row(values, row, batch) for name, values in tensors.items()}, served) | release
        for row in range(batch)
    ]


def _row(values: list[Any], row: int, batch: int) -> list[Any]:
    size = len(values) // batch
    return values[row * size : (row + 1) * size]


def _prediction(row: dict[str, list[Any]], served: Served) -> dict[str, Any]:
    size = len(served.classes)
    by_member = [row["MEMBER_PROBABILITIES"][at * size : (at + 1) * size] for at in range(len(served.members))]
    return {
        "label": row["LABEL"][0],
        "confidence": max(row["PROBABILITIES"]),
        "probabilities": dict(zip(served.classes, row["PROBABILITIES"], strict=True)),
        "entropy": row["ENTROPY"][0],
        "disagreement": row["DISAGREEMENT"][0],
        "std": dict(zip(served.classes, row["STD"], strict=True)),
        "member_probabilities": {
            member: dict(zip(served.classes, values, strict=True))
            for member, values in zip(served.members, by_member, strict=True)
        },
        "prediction_set": [name for name, inside in zip(served.classes, row["PREDICTION_SET"], strict=True) if inside],
        "review": row["REVIEW"][0],
        "ensemble": served.ensemble,
    }
