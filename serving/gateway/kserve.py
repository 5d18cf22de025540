"""The KServe v2 infer call over HTTP: JSON, and the extension that carries tensors as bytes behind it.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from tritonclient.grpc import service_pb2 as pb

from plurum.serving.gateway.answers import values_from_raw
from plurum.serving.gateway.refusals import RefusalError

__all__ = ["MAX_JSON_BYTES", "Question", "body_from_response", "question_from_body"]

# Numbers as text take long to read, and everybody waits meanwhile; beyond this, tensors are sent as bytes.
MAX_JSON_BYTES = 4 << 20
_DATATYPES = ("BYTES", "UINT8")
_BINARY_SIZE = "binary_data_size"
# Triton's name for what a request may take, in microseconds.
_TIMEOUT = "timeout"
_SHARED, _CLASSIFICATION = "shared_memory_region", "classification"

Parameters = dict[str, Any]
Size = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Input(BaseModel):
    name: str
    shape: Annotated[list[Size], Field(max_length=8)]
    datatype: str
    parameters: Parameters = {}
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: Parameters = {}


class _Body(BaseModel):
    id: str | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=8)]
    outputs: Annotated[list[_Output], Field(max_length=32)] | None = None


@dataclass(frozen=True)
class Question:
    """A request, and how its answer is wanted.

    Attributes:
        request: For Triton, a ModelInferRequest.
        id: As the client calls it; None where it does not.
        timeout_s: What it may take; None where it does not say so.
        binary: Outputs wanted as bytes.
        all_binary: Whether that goes for outputs that are not named, too.
    """

    request: Any
    id: str | None
    timeout_s: float | None
    binary: frozenset[str]
    all_binary: bool


def question_from_body(model: str, body: bytes, json_size: str | None, request_id: str) -> Question:
    """Return what a body asks of `model`.

    Args:
        model: Its name.
        body: JSON, and perhaps tensors behind it.
        json_size: The header Inference-Header-Content-Length: how many bytes of it are JSON.
        request_id: Under which Triton is asked.

    Raises:
        RefusalError: it is no such request, or one for what is not offered here.
    """
    text, tensors = _divided(body, json_size)
    try:
        parsed = _Body.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise _malformed(f"{place}: {fault['msg']}") from error
    # Parameters are ours to obey: some that Triton knows change how it queues, or whose memory it reads.
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for given in parsed.inputs:
        raw, tensors = _raw(given, tensors)
        request.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        request.raw_input_contents.append(raw)
    if tensors:
        raise _malformed(f"{len(tensors)} bytes behind the last tensor belong to none")
    for wanted in parsed.outputs or ():
        if {_SHARED, _CLASSIFICATION} & wanted.parameters.keys():
            raise _malformed("outputs in shared memory or as classification strings are not offered here")
        request.outputs.add(name=wanted.name)
    return Question(
        request=request,
        id=parsed.id,
        timeout_s=_timeout_s(parsed.parameters),
        binary=frozenset(one.name for one in parsed.outputs or () if one.parameters.get("binary_data") is True),
        all_binary=parsed.parameters.get("binary_data_output") is True,
    )


def body_from_response(response: Any, question: Question) -> tuple[bytes, int | None]:
    """Return the body of an answer and, where tensors stand behind its JSON, how long that is."""
    outputs, behind = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if question.all_binary or output.name in question.binary:
            described["parameters"] = {_BINARY_SIZE: len(raw)}
            behind.append(raw)
        else:
            described["data"] = values_from_raw(output.datatype, raw)
        outputs.append(described)
    answer: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if question.id is not None:
        answer["id"] = question.id
    text = json.dumps(answer | {"outputs": outputs}).encode()
    return b"".join([text, *behind]), len(text) if behind else None


def _divided(body: bytes, json_size: str | None) -> tuple[bytes, bytes]:
    size = len(body)
    if json_size is not None:
        if not (json_size.isascii() and json_size.isdigit() and len(json_size) < 12 and int(json_size) <= len(body)):
            raise _malformed(f"Inference-Header-Content-Length is {json_size[:20]!r}, the body has {len(body)} bytes")
        size = int(json_size)
    if size > MAX_JSON_BYTES:
        raise RefusalError(
            413, "too_large", f"{size} bytes of JSON, at most {MAX_JSON_BYTES} are read: send tensors as binary data"
        )
    return body[:size], body[size:]


def _raw(given: _Input, tensors: bytes) -> tuple[bytes, bytes]:
    """Return an input's bytes, and what is left behind them of the bodies' tensors."""
    if given.datatype not in _DATATYPES:
        raise _malformed(f"{given.name[:40]} is of type {given.datatype[:20]!r}; IMAGE is BYTES, PIXELS is UINT8")
    if _SHARED in given.parameters:
        raise _malformed("inputs in shared memory are not offered here")
    if _BINARY_SIZE not in given.parameters:
        return _raw_from_json(given), tensors
    size = given.parameters[_BINARY_SIZE]
    if not isinstance(size, int) or not 0 <= size <= len(tensors):
        raise _malformed(f"{given.name[:40]} is said to have {size!r:.40} bytes, {len(tensors)} are there")
    return tensors[:size], tensors[size:]


def _raw_from_json(given: _Input) -> bytes:
    wanted = math.prod(given.shape)
    try:
        if given.datatype == "BYTES":
            # As Triton takes them: the text's own bytes. An image is hardly ever text; it is sent as binary data.
            texts = _flat(given.data)
            raw = b"".join(struct.pack("<I", len(text)) + text for text in (text.encode() for text in texts))
            count = len(texts)
        else:
            # Floats take any number there is, and never more than 8 bytes for one.
            values = np.array(given.data, dtype=np.float64)
            with np.errstate(invalid="ignore"):
                pixels = values.astype(np.uint8)
            if not np.array_equal(values, pixels):
                raise ValueError("a value is no whole number from 0 to 255")
            raw, count = pixels.tobytes(), pixels.size
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise _malformed(f"{given.name[:40]}: data are no {given.datatype}: {str(error)[:100]}") from error
    if count != wanted:
        raise _malformed(f"{given.name[:40]} has {count} values, its shape {given.shape} needs {wanted}")
    return raw


def _flat(data: Any) -> list[Any]:
    """Return the elements of nested lists; the parser has limited how deep they are nested."""
    return [leaf for part in data for leaf in _flat(part)] if isinstance(data, list) else [data]


def _timeout_s(parameters: Parameters) -> float | None:
    microseconds = parameters.get(_TIMEOUT)
    if microseconds is None:
        return None
    if not isinstance(microseconds, int) or isinstance(microseconds, bool) or microseconds <= 0:
        raise _malformed("the parameter timeout is no number of microseconds above 0")
    return microseconds / 1e6


def _malformed(text: str) -> RefusalError:
    return RefusalError(400, "malformed", text)
