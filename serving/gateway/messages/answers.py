"""Convert Triton's tensors to JSON with the field names of `plurum.client.Prediction`.

Legend: C classes, M members; every tensor has a leading batch dimension.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from plurum.serving.gateway.triton import ServedEnsemble
from plurum.spec import OUTPUTS, release_from_version

__all__ = ["bytes_from_raw", "predictions_from_response", "values_from_raw"]


def values_from_raw(datatype: str, raw: bytes) -> list[Any]:
    """Return the flat values of an output; BYTES elements as text."""
    if datatype == "BYTES":
        return [one.decode("utf-8", "replace") for one in bytes_from_raw(raw)]
    # Another release may have outputs of other types.
    return np.frombuffer(raw, triton_to_np_dtype(datatype)).tolist()  # type: ignore[no-any-return]


def bytes_from_raw(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor, each stored as a little-endian length followed by the bytes.

    Raises:
        ValueError: the lengths don't add up.
    """
    found, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("a length is truncated")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4 + size
        if at > len(raw):
            raise ValueError("an element is truncated")
        found.append(raw[at - size : at])
    return found


def predictions_from_response(response: Any, served: ServedEnsemble) -> list[dict[str, Any]]:
    """Return one JSON object per image.

    Raises:
        ValueError: the response comes from another release, whose classes or members differ from those of `served`.
    """
    tensors = {
        output.name: values_from_raw(output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if missing := OUTPUTS.keys() - tensors.keys():
        raise ValueError(f"the response has no {min(missing)}")
    batch, classes, members = len(tensors["LABEL"]), len(served.classes), len(served.members)
    if len(tensors["MEMBER_PROBABILITIES"]) != batch * members * classes:
        raise ValueError("the response comes from another ensemble")
    release = {"release": release_from_version(response.model_version)}
    return [
        _prediction({name: _row(values, row, batch) for name, values in tensors.items()}, served) | release
        for row in range(batch)
    ]


def _row(values: list[Any], row: int, batch: int) -> list[Any]:
    size = len(values) // batch
    return values[row * size : (row + 1) * size]


def _prediction(row: dict[str, list[Any]], served: ServedEnsemble) -> dict[str, Any]:
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
