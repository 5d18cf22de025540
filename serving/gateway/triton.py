"""Triton over gRPC, as raw protobuf: image bytes go through as they came, and nothing is ever cancelled.

Triton 2.51 can crash when a request through an ensemble is cancelled in flight, so no call to `infer` has a deadline
of its own, and whoever awaits one must let it end.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from plurum.conventions import PROBE_ID
from plurum.spec import IMAGE, INPUT_PIXELS

__all__ = ["ENSEMBLE", "PUBLIC", "Served", "Triton", "WireRequest", "image_request", "known_question", "wire_request"]

ENSEMBLE = "ensemble"
# What a network may ask; members, preprocess and voter are nobody's business.
PUBLIC = (ENSEMBLE, "ensemble_pixels", "ensemble_fused")
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A restarted Triton is found at once: gRPC's own backoff goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
# Questions about models need no computing.
_DESCRIBE_S = 2.0
# What stands before each tensor of a serialized request: its field's number, and that bytes with a length follow.
_RAW_TAG = bytes([pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2])

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class WireRequest:
    """A request for Triton as it goes over the wire.

    Attributes:
        model: Its name.
        id: Of the request.
        wire: A serialized ModelInferRequest.
    """

    model: str
    id: str
    wire: bytes


@dataclass(frozen=True)
class Served:
    """What Triton says of the ensemble.

    Attributes:
        ensemble: Its name, as in metrics and reports.
        classes: Names, in the order of the outputs.
        members: Likewise.
        height: Of the image that members see, pixels.
        width: Likewise.
        max_batch_size: Most images in one request.
        models: Metadata of the public models that are served, by name.
    """

    ensemble: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    height: int
    width: int
    max_batch_size: int
    models: dict[str, Any]


class Triton:
    """A connection to one server, of the event loop that runs when it is made.

    Every method raises `grpc.aio.AioRpcError` when there is no answer, or one that is an error.

    Args:
        target: HOST:PORT or unix:PATH.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._infer = self._method("ModelInfer", _Serialized, pb.ModelInferResponse)
        self._ready = self._method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
        self._metadata = self._method("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
        self._config = self._method("ModelConfig", pb.ModelConfigRequest, pb.ModelConfigResponse)

    @property
    def connected(self) -> bool:
        """Whether the connection stands: an error that came over it is Triton's own word."""
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    def infer(self, request: WireRequest) -> Any:
        """Begin a request and return the call, which is never cancelled, and never awaited by one alone."""
        return self._infer(request)

    async def is_ready(self, model: str) -> bool:
        """Whether Triton would take requests for `model`, which does not mean that it answers them."""
        answer = await self._ready(pb.ModelReadyRequest(name=model), timeout=_DESCRIBE_S)
        return bool(answer.ready)

    async def served(self) -> Served:
        """Ask what is served.

        Raises:
            ValueError: the ensemble is none of Plurum's.
        """
        config = (await self._config(pb.ModelConfigRequest(name=ENSEMBLE), timeout=_DESCRIBE_S)).config
        try:
            contract = json.loads(config.parameters["contract"].string_value)
            return Served(
                ensemble=str(contract["name"]),
                classes=tuple(contract["classes"]),
                members=tuple(member["name"] for member in contract["members"]),
                height=contract["image"]["height"],
                width=contract["image"]["width"],
                max_batch_size=config.max_batch_size,
                models=await self._models(),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the model {ENSEMBLE!r} states no contract") from error

    async def close(self) -> None:
        """Let go of the connection; calls that have not ended by now are lost with it."""
        await self._channel.close()

    async def _models(self) -> dict[str, Any]:
        found = {}
        for name in PUBLIC:
            try:
                found[name] = await self._metadata(pb.ModelMetadataRequest(name=name), timeout=_DESCRIBE_S)
            except grpc.aio.AioRpcError:
                # An export without it. Every export has the ensemble: without it Triton is still loading.
                if not self.connected or name == ENSEMBLE:
                    raise
        return found

    def _method(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


class _Serialized:
    """What gRPC needs of a message, for one that is serialized already."""

    @staticmethod
    def SerializeToString(request: WireRequest) -> bytes:  # noqa: N802 (protobuf's name)
        return request.wire


def wire_request(described: Any, tensors: Sequence[Sequence[Buffer]]) -> WireRequest:
    """Return a request whose tensors are copied once, where protobuf would copy them three times.

    Messages that stand one behind the other are one message: behind the description comes each tensor as a field.

    Args:
        described: A ModelInferRequest without contents.
        tensors: Of each input the bytes, in parts.
    """
    wire: list[Buffer] = [described.SerializeToString()]
    for parts in tensors:
        wire += [_RAW_TAG, _varint(sum(map(len, parts))), *parts]
    return WireRequest(described.model_name, described.id, b"".join(wire))


def image_request(images: Sequence[Buffer], request_id: str) -> WireRequest:
    """Return the request for the ensemble's answers to encoded images; BYTES is a length and the bytes, each."""
    described = pb.ModelInferRequest(model_name=ENSEMBLE, id=request_id)
    described.inputs.add(name=IMAGE, datatype="BYTES", shape=(len(images), 1))
    return wire_request(described, [[part for one in images for part in (struct.pack("<I", len(one)), one)]])


def known_question(model: str, served: Served) -> WireRequest:
    """Return a request about a grey image, under the name that the voter does not count."""
    if model == ENSEMBLE:
        file = io.BytesIO()
        Image.new("RGB", (served.width, served.height), (128, 128, 128)).save(file, "PNG")
        return image_request([file.getvalue()], PROBE_ID)
    described = pb.ModelInferRequest(model_name=model, id=PROBE_ID)
    pixels = np.full((1, served.height, served.width, 3), 128, np.uint8)
    described.inputs.add(name=INPUT_PIXELS, datatype="UINT8", shape=pixels.shape)
    return wire_request(described, [[pixels.tobytes()]])


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
