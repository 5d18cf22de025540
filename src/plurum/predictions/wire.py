"""Tensors as bytes, as KServe's gRPC protocol sends them. A BYTES tensor holds a length before each element.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.conventions import PATIENTS
from plurum.errors import ServerError

__all__ = ["array_from_raw", "bytes_from_raw", "parameters_from_patients", "raw_from_bytes", "tensors_from_response"]


def tensors_from_response(response: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a ModelInferResponse by name; they are read-only.

    Raises:
        ServerError: no server of Plurum sends such a response.
    """
    try:
        return {
            output.name: array_from_raw(output.datatype, output.shape, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except (TypeError, ValueError) as error:
        raise ServerError(f"the server's response can't be read: {error}. Use a server of Plurum.") from error


def array_from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> npt.NDArray[Any]:
    """Return the tensor that `raw` holds; it shares its memory.

    Raises:
        TypeError: NumPy has no such data type.
        ValueError: the bytes don't fit the shape.
    """
    if datatype != "BYTES":
        # FP32 is NumPy's float32; the other names differ only in their case.
        return np.frombuffer(raw, datatype.lower().replace("fp", "float")).reshape(shape)
    values = bytes_from_raw(raw)
    tensor = np.empty(len(values), dtype=np.object_)
    tensor[:] = values
    return tensor.reshape(shape)


def parameters_from_patients(patients: Sequence[str]) -> dict[str, str]:
    """Return the parameters of a request that name its images' patients; empty if none is known.

    Args:
        patients: Patient of each image; an empty text if unknown.
    """
    return {PATIENTS: json.dumps([one or None for one in patients])} if any(patients) else {}


def raw_from_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the contents of a BYTES tensor."""
    return b"".join(part for one in elements for part in (struct.pack("<I", len(one)), one))


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
