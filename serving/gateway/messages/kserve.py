"""The KServe v2 inference protocol over HTTP: JSON, and the extension that appends tensors as bytes.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc import service_pb2 as pb

from plurum.conventions import FULL, PATIENTS
from plurum.predictions.wire import array_from_raw
from plurum.serving.gateway.messages.tensors import check_image, check_tensor, raw_from_json
from plurum.serving.gateway.refusals import RefusalError, malformed
from plurum.serving.gateway.triton import ENSEMBLE, Buffer, ServedEnsemble, WireRequest, image_request, wire_request
from plurum.spec import INPUT_PIXELS

__all__ = ["MAX_JSON_BYTES", "InferenceRequest", "body_from_response", "request_from_body", "request_from_raw"]

# Parsing numbers from text blocks the event loop, so larger tensors must be sent as bytes.
MAX_JSON_BYTES = 4 << 20
_DATATYPES = ("BYTES", "UINT8")
_BINARY_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
# Triton's parameter for a request's time limit, in microseconds, and the largest accepted value, a year.
_TIMEOUT, _LONGEST_US = "timeout", 365 * 86400 * 10**6
_SHARED, _CLASSIFICATION = "shared_memory_region", "classification"

Parameters = dict[str, Any]
# Names must be printable ASCII: Triton reads them only up to the first zero byte.
Name = Annotated[str, Field(pattern=r"\A[!-~]{1,128}\z")]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Part(BaseModel):
    # Strict: accept neither "1" nor true as a number.
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
class InferenceRequest:
    """A parsed request, with the requested format of its response.

    Attributes:
        request: Request for Triton.
        id: Id from the client; None if it gave none.
        timeout_s: Time limit from the client, seconds; None if it gave none.
        binary: Per output name, True if the client requested binary data.
        all_binary: True if the client requested binary data for the outputs that `binary` does not name.
    """

    request: WireRequest
    id: str | None = None
    timeout_s: float | None = None
    binary: dict[str, bool] = field(default_factory=dict)
    all_binary: bool = False


def request_from_body(model: str, body: Buffer, json_size: str | None, request_id: str) -> InferenceRequest:
    """Parse the body of a request to `model`.

    Args:
        model: Name of the model.
        body: JSON, optionally followed by binary tensors.
        json_size: Header Inference-Header-Content-Length: the number of bytes that are JSON; None if all are.
        request_id: Id of the request to Triton.

    Raises:
        RefusalError: the request is invalid, or uses a feature that the gateway does not offer.
    """
    text, tensors = _divided(memoryview(body), json_size)
    parsed = _parsed(text)
    # Don't forward other parameters: some of them change Triton's queueing, or make it read shared memory.
    described = pb.ModelInferRequest(model_name=model, id=request_id)
    if (patients := _patients(parsed)) is not None:
        described.parameters[PATIENTS].string_param = patients
    if _flag(parsed.parameters, FULL):
        described.parameters[FULL].bool_param = True
    contents: list[list[Buffer]] = []
    for given in parsed.inputs:
        raw, tensors = _raw(given, tensors)
        check_tensor(given.name, given.datatype, given.shape, raw)
        described.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        contents.append([raw])
    if tensors:
        raise malformed(f"the body: expected no bytes after the last tensor, got {len(tensors)}")
    outputs = parsed.outputs or []
    for output in outputs:
        if {_SHARED, _CLASSIFICATION} & output.parameters.keys():
            raise malformed("outputs in shared memory or as classification strings are not supported")
        described.outputs.add(name=output.name)
    return InferenceRequest(
        request=wire_request(described, contents),
        id=parsed.id,
        timeout_s=_timeout_s(parsed.parameters),
        binary={one.name: _flag(one.parameters, _BINARY) for one in outputs if _BINARY in one.parameters},
        all_binary=_flag(parsed.parameters, _ALL_BINARY),
    )


def request_from_raw(model: str, body: Buffer, served: ServedEnsemble, request_id: str) -> InferenceRequest:
    """Return the request for a body without JSON: one image. All outputs are binary, as in Triton.

    Args:
        model: Name of the model.
        body: Encoded image without a length prefix for the model `ensemble`; pixels for the others.
        served: Description of the ensemble, which states the image size.
        request_id: Id of the request to Triton.

    Raises:
        RefusalError: the body has the wrong size, or is base64 text.
    """
    view = memoryview(body)
    if model == ENSEMBLE:
        check_image(view)
        return InferenceRequest(image_request([view], request_id), all_binary=True)
    shape = (1, served.height, served.width, 3)
    check_tensor(INPUT_PIXELS, "UINT8", shape, view)
    described = pb.ModelInferRequest(model_name=model, id=request_id)
    described.inputs.add(name=INPUT_PIXELS, datatype="UINT8", shape=shape)
    return InferenceRequest(wire_request(described, [[view]]), all_binary=True)


def body_from_response(response: Any, request: InferenceRequest) -> tuple[bytes, int | None]:
    """Return the body of a response and, if tensors follow its JSON, the length of the JSON in bytes."""
    outputs, appended = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if request.binary.get(output.name, request.all_binary):
            described["parameters"] = {_BINARY_SIZE: len(raw)}
            appended.append(raw)
        else:
            described["data"] = _values(array_from_raw(output.datatype, output.shape, raw))
        outputs.append(described)
    body: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if request.id is not None:
        body["id"] = request.id
    try:
        text = json.dumps(body | {"outputs": outputs}, allow_nan=False).encode()
    except ValueError as error:
        raise RefusalError(
            500, "failed", "the response holds NaN or infinity, which JSON can't express. Request binary data."
        ) from error
    return b"".join([text, *appended]), len(text) if appended else None


def _values(tensor: npt.NDArray[Any]) -> list[Any]:
    """Return the flat values of a tensor; BYTES elements as text."""
    values: list[Any] = tensor.ravel().tolist()
    return [one.decode("utf-8", "replace") for one in values] if tensor.dtype == np.object_ else values


def _divided(body: memoryview, json_size: str | None) -> tuple[bytes, memoryview]:
    size = len(body)
    if json_size is not None:
        if not (json_size.isascii() and json_size.isdigit() and len(json_size) < 12 and int(json_size) <= len(body)):
            raise malformed(
                f"Inference-Header-Content-Length: expected at most {len(body)}, the body's size, got "
                f"{json_size[:20]!r}"
            )
        size = int(json_size)
    if size > MAX_JSON_BYTES:
        raise RefusalError(
            413, "too_large", f"JSON: expected at most {MAX_JSON_BYTES} bytes, got {size}. Send tensors as binary data."
        )
    return bytes(body[:size]), body[size:]


def _parsed(text: bytes) -> _Body:
    try:
        # Decode first: `json` would also accept UTF-16 and UTF-32.
        return _Body.model_validate(_JSON.decode(text.decode()))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise malformed(f"{place[:100]}: {fault['msg']}") from error
    except UnicodeDecodeError as error:
        raise malformed(
            "the body: expected JSON in UTF-8 before the tensors. Check Inference-Header-Content-Length."
        ) from error
    except RecursionError as error:
        raise malformed("the body: JSON is nested too deep") from error
    except ValueError as error:
        raise malformed(f"the body: expected JSON: {str(error)[:100]}") from error


# Refuse what has no defined meaning in JSON: repeated names, NaN and infinity.
def _dict_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object repeats a name")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


_JSON = json.JSONDecoder(object_pairs_hook=_dict_from_pairs, parse_constant=_refuse_constant)


def _raw(given: _Input, tensors: memoryview) -> tuple[memoryview, memoryview]:
    """Return an input's bytes, and the rest of the body's binary tensors."""
    if given.datatype not in _DATATYPES:
        raise malformed(f"{given.name[:40]}: expected BYTES for IMAGE or UINT8 for PIXELS, got {given.datatype[:20]!r}")
    if _SHARED in given.parameters:
        raise malformed("inputs in shared memory are not supported")
    if _BINARY_SIZE not in given.parameters:
        return memoryview(raw_from_json(given.name, given.datatype, given.data)), tensors
    if given.data is not None:
        raise malformed(f"{given.name[:40]}: expected data or {_BINARY_SIZE}, got both. Give one.")
    size = given.parameters[_BINARY_SIZE]
    if type(size) is not int or not 0 <= size <= len(tensors):
        raise malformed(
            f"{given.name[:40]}: expected a {_BINARY_SIZE} of at most the remaining {len(tensors)} bytes, got "
            f"{_shorten(size)}"
        )
    return tensors[:size], tensors[size:]


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise malformed(f"the parameter {name}: expected true or false, got {_shorten(value)}")
    return value


def _patients(parsed: _Body) -> str | None:
    """Return the parameter that names the images' patients, as the voter reads it; None without it."""
    text = parsed.parameters.get(PATIENTS)
    if text is None:
        return None
    try:
        patients = _JSON.decode(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        patients = None
    images = parsed.inputs[0].shape[0] if parsed.inputs[0].shape else 0
    if not (isinstance(patients, list) and all(isinstance(one, str | None) for one in patients)):
        raise malformed(
            f"the parameter {PATIENTS}: expected the text of a JSON list of texts or null, got {_shorten(text)}"
        )
    if len(patients) != images:
        raise malformed(f"the parameter {PATIENTS}: expected {images}, one per image, got {len(patients)}")
    return json.dumps(patients)


def _timeout_s(parameters: Parameters) -> float | None:
    microseconds = parameters.get(_TIMEOUT)
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds <= 0:
        raise malformed(f"the parameter {_TIMEOUT}: expected microseconds above 0, got {_shorten(microseconds)}")
    # Clamp before dividing: a JSON integer may be too large for a float.
    return min(microseconds, _LONGEST_US) / 1e6


def _shorten(value: Any) -> str:
    """Return a short text for a value; only the type of lists and objects, which may be deeply nested."""
    return f"{value!r:.40}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
