"""Call Triton over gRPC with raw protobuf: image bytes are forwarded unchanged, and no inference is ever cancelled.

Triton 2.51 can crash when a request through an ensemble is cancelled in flight. Calls to `infer` therefore have no
deadline, and callers must let them complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from plurum.conventions import FULL, PROBE_ID
from plurum.predictions.wire import parameters_from_patients
from plurum.spec import IMAGE, INPUT_PIXELS

__all__ = [
    "ENSEMBLE",
    "PUBLIC",
    "ServedEnsemble",
    "TritonConnection",
    "WireRequest",
    "image_request",
    "probe_request",
    "wire_request",
]

ENSEMBLE = "ensemble"
# Models that clients may use; members, preprocess and voter are internal.
PUBLIC = (ENSEMBLE, "ensemble_pixels", "ensemble_fused")
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Reconnect to a restarted Triton at once: gRPC's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_SHOWN = ("patient_rule", "operating_point", "audit_rate", "promise", "image")
# Time limit for metadata requests, which need no computing.
_DESCRIBE_S = 2.0
# Prefix of each tensor in a serialized request: the field's number, and the wire type of length-delimited bytes.
_RAW_TAG = bytes([pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2])

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class WireRequest:
    """An inference request in wire format.

    Attributes:
        model: Name of the model.
        id: Id of the request.
        wire: Serialized ModelInferRequest.
    """

    model: str
    id: str
    wire: bytes


@dataclass(frozen=True)
class ServedEnsemble:
    """Description of the ensemble that Triton serves.

    Attributes:
        ensemble: Name of the ensemble, as in metrics and reports.
        classes: Class names, in the order of the outputs.
        members: Member names, in the order of the outputs.
        height: Height of the members' input image, pixels.
        width: Width of the members' input image, pixels.
        max_batch_size: Maximum number of images in one request.
        models: Metadata of the public models that are served, by name.
        has_cascade: True if not all members run for each image.
        metadata_sha256: SHA-256 of the ensemble's metadata, as Triton states them.
        shown: Parts of the metadata that clients show or apply: `patient_rule`, `operating_point`, `audit_rate`,
            `promise`, and `image` for the page's display, where present.
    """

    ensemble: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    height: int
    width: int
    max_batch_size: int
    models: dict[str, Any]
    has_cascade: bool = False
    metadata_sha256: str = ""
    shown: dict[str, Any] = field(default_factory=dict)


class TritonConnection:
    """A connection to one server; it belongs to the event loop in which it is created.

    Every method raises `grpc.aio.AioRpcError` if there is no response, or if it is an error.

    Args:
        target: Address of the server: HOST:PORT or unix:PATH.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._infer = self._method("ModelInfer", _Serialized)
        self._ready, self._metadata, self._config = map(self._method, ("ModelReady", "ModelMetadata", "ModelConfig"))

    @property
    def connected(self) -> bool:
        """True if the connection is established, so that an error came from Triton itself."""
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    def infer(self, request: WireRequest) -> Any:
        """Start an inference and return the call. Never cancel it, nor await it directly: that would cancel it too."""
        return self._infer(request)

    async def is_ready(self, model: str) -> bool:
        """Return True if Triton accepts requests for `model`, which does not mean that it completes them."""
        answer = await self._ready(pb.ModelReadyRequest(name=model), timeout=_DESCRIBE_S)
        return bool(answer.ready)

    async def describe(self) -> ServedEnsemble:
        """Return a description of the served ensemble.

        Raises:
            ValueError: the ensemble was not exported by Plurum.
        """
        config = (await self._config(pb.ModelConfigRequest(name=ENSEMBLE), timeout=_DESCRIBE_S)).config
        try:
            text = config.parameters["contract"].string_value
            metadata = json.loads(text)
            return ServedEnsemble(
                ensemble=str(metadata["name"]),
                classes=tuple(metadata["classes"]),
                members=tuple(member["name"] for member in metadata["members"]),
                height=metadata["image"]["height"],
                width=metadata["image"]["width"],
                max_batch_size=config.max_batch_size,
                models=await self._models(),
                has_cascade=metadata.get("cascade") is not None,
                metadata_sha256=hashlib.sha256(text.encode()).hexdigest(),
                shown={name: metadata[name] for name in _SHOWN if metadata.get(name) is not None},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the config of the model {ENSEMBLE!r} has no valid parameter 'contract'") from error

    async def close(self) -> None:
        """Close the connection; calls that have not completed are lost."""
        await self._channel.close()

    async def _models(self) -> dict[str, Any]:
        found = {}
        for name in PUBLIC:
            try:
                found[name] = await self._metadata(pb.ModelMetadataRequest(name=name), timeout=_DESCRIBE_S)
            except grpc.aio.AioRpcError:
                # Only the ensemble is in every export; if it is missing, Triton is still loading.
                if not self.connected or name == ENSEMBLE:
                    raise
        return found

    def _method(self, name: str, request: Any = None) -> Any:
        return self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{name}",
            request_serializer=(request or getattr(pb, f"{name}Request")).SerializeToString,
            response_deserializer=getattr(pb, f"{name}Response").FromString,
        )


class _Serialized:
    """A message type for gRPC whose messages are already serialized."""

    @staticmethod
    def SerializeToString(request: WireRequest) -> bytes:  # noqa: N802 (protobuf's name)
        return request.wire


def wire_request(described: Any, tensors: Sequence[Sequence[Buffer]]) -> WireRequest:
    """Return a request whose tensors are copied once, where protobuf would copy them three times.

    Concatenated protobuf messages form one message, so each tensor is appended to the description as a field.

    Args:
        described: ModelInferRequest without tensor contents.
        tensors: Bytes of each input, in parts.
    """
    wire: list[Buffer] = [described.SerializeToString()]
    for parts in tensors:
        wire += [_RAW_TAG, _varint(sum(map(len, parts))), *parts]
    return WireRequest(described.model_name, described.id, b"".join(wire))


def image_request(
    images: Sequence[Buffer], request_id: str, patients: Sequence[str] = (), *, full: bool = False
) -> WireRequest:
    """Return a request to classify encoded images; each BYTES element is a length followed by the bytes.

    Args:
        images: Encoded images.
        request_id: Id of the request.
        patients: Patient of each image, an empty text if unknown; may be empty if all are unknown.
        full: If True, all members of a cascade run for each image.
    """
    described = pb.ModelInferRequest(model_name=ENSEMBLE, id=request_id)
    for name, value in parameters_from_patients(patients).items():
        described.parameters[name].string_param = value
    if full:
        described.parameters[FULL].bool_param = True
    described.inputs.add(name=IMAGE, datatype="BYTES", shape=(len(images), 1))
    return wire_request(described, [[part for one in images for part in (struct.pack("<I", len(one)), one)]])


def probe_request(model: str, served: ServedEnsemble) -> WireRequest:
    """Return a request with a grey image for all members, under the id that the voter does not count."""
    if model == ENSEMBLE:
        file = io.BytesIO()
        Image.new("RGB", (served.width, served.height), (128, 128, 128)).save(file, "PNG")
        return image_request([file.getvalue()], PROBE_ID, full=served.has_cascade)
    described = pb.ModelInferRequest(model_name=model, id=PROBE_ID)
    if served.has_cascade:
        described.parameters[FULL].bool_param = True
    pixels = np.full((1, served.height, served.width, 3), 128, np.uint8)
    described.inputs.add(name=INPUT_PIXELS, datatype="UINT8", shape=pixels.shape)
    return wire_request(described, [[pixels.tobytes()]])


def _varint(number: int) -> bytes:
    """Return a number in protobuf's varint encoding: seven bits per byte, lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
