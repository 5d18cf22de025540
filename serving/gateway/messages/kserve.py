"""The KServe v2 infer call over HTTP: JSON, and the extension that carries tensors as bytes behind it.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc import service_pb2 as pb

from plurum.serving.gateway.messages.answers import values_from_raw
from plurum.serving.gateway.messages.tensors import check_image, check_tensor, raw_from_json
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.triton import ENSEMBLE, Buffer, Served, WireRequest, image_request, wire_request
from plurum.spec import INPUT_PIXELS

__all__ = ["MAX_JSON_BYTES", "Question", "body_from_response", "question_from_body", "question_from_raw"]

# Numbers as text take long to read, and everybody waits meanwhile; beyond this, tensors are sent as bytes.
MAX_JSON_BYTES = 4 << 20
_DATATYPES = ("BYTES", "UINT8")
_BINARY_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
# Triton's name for what a request may take, in microseconds; no request waits for a year.
_TIMEOUT, _LONGEST_US = "timeout", 365 * 86400 * 10**6
_SHARED, _CLASSIFICATION = "shared_memory_region", "classification"

Parameters = dict[str, Any]
# Names are printable ASCII: Triton reads them up to the first zero byte.
Name = Annotated[str, Field(pattern=r"\A[!-~]{1,128}\z")]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Part(BaseModel):
    # "1" is no number, nor is true.
    model_config = ConfigDict(strict=True)


class _Input(_Part):
    name: Name
    shape: Annotated[list[Size], Field(max_length=8)]
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    data: Any = None


class _Output(_Part):
    name: Name
    parameters: Parameters = Field(default_factory=dict)


class _Body(_Part):
    id: Annotated[str, Field(max_length=1024)] | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=8)]
    outputs: Annotated[list[_Output], Field(max_length=32)] | None = None


@dataclass(frozen=True)
class Question:
    """A request, and how its answer is wanted.

    Attributes:
        request: For Triton.
        id: As the client calls it; None where it does not.
        timeout_s: What it may take; None where it does not say so.
        binary: Whether outputs are wanted as bytes, by name, where that is said.
        all_binary: Whether the others are.
    """

    request: WireRequest
    id: str | None = None
    timeout_s: float | None = None
    binary: dict[str, bool] = field(default_factory=dict)
    all_binary: bool = False


def question_from_body(model: str, body: Buffer, json_size: str | None, request_id: str) -> Question:
    """Return what a body asks of `model`.

    Args:
        model: Its name.
        body: JSON, and perhaps tensors behind it.
        json_size: The header Inference-Header-Content-Length: how many bytes of it are JSON.
        request_id: Under which Triton is asked.

    Raises:
        RefusalError: it is no such request, or one for what is not offered here.
    """
    text, tensors = _divided(memoryview(body), json_size)
    parsed = _parsed(text)
    # Parameters are ours to obey: some that Triton knows change how it queues, or whose memory it reads.
    described = pb.ModelInferRequest(model_name=model, id=request_id)
    contents: list[list[Buffer]] = []
    for given in parsed.inputs:
        raw, tensors = _raw(given, tensors)
        check_tensor(given.name, given.datatype, given.shape, raw)
        described.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        contents.append([raw])
    if tensors:
        raise _malformed(f"{len(tensors)} bytes behind the last tensor belong to none")
    outputs = parsed.outputs or []
    for wanted in outputs:
        if {_SHARED, _CLASSIFICATION} & wanted.parameters.keys():
            raise _malformed("outputs in shared memory or as classification strings are not offered here")
        described.outputs.add(name=wanted.name)
    return Question(
        request=wire_request(described, contents),
        id=parsed.id,
        timeout_s=_timeout_s(parsed.parameters),
        binary={one.name: _flag(one.parameters, _BINARY) for one in outputs if _BINARY in one.parameters},
        all_binary=_flag(parsed.parameters, _ALL_BINARY),
    )


def question_from_raw(model: str, body: Buffer, served: Served, request_id: str) -> Question:
    """Return what a body without JSON asks: one image for the model's only input. Outputs are bytes, as Triton's are.

    Args:
        model: Its name.
        body: An encoded image, without a length before it, for the model `ensemble`; else pixels.
        served: How large pixels are.
        request_id: Under which Triton is asked.

    Raises:
        RefusalError: it is of another size than one image, or base64 text.
    """
    view = memoryview(body)
    if model == ENSEMBLE:
        check_image(view)
        return Question(image_request([view], request_id), all_binary=True)
    shape = (1, served.height, served.width, 3)
    check_tensor(INPUT_PIXELS, "UINT8", shape, view)
    described = pb.ModelInferRequest(model_name=model, id=request_id)
    described.inputs.add(name=INPUT_PIXELS, datatype="UINT8", shape=shape)
    return Question(wire_request(described, [[view]]), all_binary=True)


def body_from_response(response: Any, question: Question) -> tuple[bytes, int | None]:
    """Return the body of an answer and, where tensors stand behind its JSON, how long that is."""
    outputs, behind = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if question.binary.get(output.name, question.all_binary):
            described["parameters"] = {_BINARY_SIZE: len(raw)}
            behind.append(raw)
        else:
            described["data"] = values_from_raw(output.datatype, raw)
        outputs.append(described)
    answer: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if question.id is not None:
        answer["id"] = question.id
    try:
        text = json.dumps(answer | {"outputs": outputs}, allow_nan=False).encode()
    except ValueError as error:
        raise RefusalError(500, "failed", "the answer holds numbers that JSON has not; ask for binary data") from error
    return b"".join([text, *behind]), len(text) if behind else None


def _divided(body: memoryview, json_size: str | None) -> tuple[bytes, memoryview]:
    size = len(body)
    if json_size is not None:
        if not (json_size.isascii() and json_size.isdigit() and len(json_size) < 12 and int(json_size) <= len(body)):
            raise _malformed(f"Inference-Header-Content-Length is {json_size[:20]!r}, the body has {len(body)} bytes")
        size = int(json_size)
    if size > MAX_JSON_BYTES:
        raise RefusalError(
            413, "too_large", f"{size} bytes of JSON, at most {MAX_JSON_BYTES} are read: send tensors as binary data"
        )
    return bytes(body[:size]), body[size:]


def _parsed(text: bytes) -> _Body:
    try:
        # UTF-8 and nothing else.
        return _Body.model_validate(_JSON.decode(text.decode()))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise _malformed(f"{place[:100]}: {fault['msg']}") from error
    except UnicodeDecodeError as error:
        raise _malformed(
            "the body: expected JSON in UTF-8 before any tensor; is the header's length of it right?"
        ) from error
    except RecursionError as error:
        raise _malformed("the body: JSON is nested too deep") from error
    except ValueError as error:
        raise _malformed(f"the body: expected JSON: {str(error)[:100]}") from error


# What would be read by a guess: a name that stands there twice, a number that is none.
def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _raw(given: _Input, tensors: memoryview) -> tuple[memoryview, memoryview]:
    """Return an input's bytes, and what is left behind them of the body's tensors."""
    if given.datatype not in _DATATYPES:
        raise _malformed(f"{given.name[:40]} is of type {given.datatype[:20]!r}; IMAGE is BYTES, PIXELS is UINT8")
    if _SHARED in given.parameters:
        raise _malformed("inputs in shared memory are not offered here")
    if _BINARY_SIZE not in given.parameters:
        return memoryview(raw_from_json(given.name, given.datatype, given.data)), tensors
    if given.data is not None:
        raise _malformed(f"{given.name[:40]} has both data and {_BINARY_SIZE}; give one")
    size = given.parameters[_BINARY_SIZE]
    if type(size) is not int or not 0 <= size <= len(tensors):
        raise _malformed(f"{given.name[:40]} is said to have {_shown(size)} bytes, {len(tensors)} are there")
    return tensors[:size], tensors[size:]


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _malformed(f"the parameter {name}: expected true or false, got {_shown(value)}")
    return value


def _timeout_s(parameters: Parameters) -> float | None:
    microseconds = parameters.get(_TIMEOUT)
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds <= 0:
        raise _malformed(f"the parameter {_TIMEOUT}: expected microseconds above 0, got {_shown(microseconds)}")
    # A whole number of JSON's has any number of digits; a float has not.
    return min(microseconds, _LONGEST_US) / 1e6


def _shown(value: Any) -> str:
    """Return a value in few letters; of lists and objects, which may be deep, no more than what they are."""
    return f"{value!r:.40}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _malformed(text: str) -> RefusalError:
    return RefusalError(400, "malformed", text)
