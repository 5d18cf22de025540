"""Over gRPC, one channel for all threads.

No call has a gRPC deadline and none is cancelled: Triton 2.51 can crash when a call is cancelled in mid-flight.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from plurum.client.calls import Call
from plurum.client.transport import (
    DATA_TYPES,
    Access,
    CallError,
    Fault,
    Outputs,
    Place,
    WireProtocol,
    names_from_statistics,
)
from plurum.errors import SettingsError, needs_extra
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = ["GrpcTransport"]

T = TypeVar("T")
_SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = (
    # A proxy from the environment is for the web, not for a server that was named with its port.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted server is found at once: gRPC's own backoff goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, how long an attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Clients of two keys or certificates are not to share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)
_TYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}
_FAULTS: dict[str, Fault] = {
    "INVALID_ARGUMENT": "refused",
    "OUT_OF_RANGE": "refused",
    "RESOURCE_EXHAUSTED": "refused",
    "NOT_FOUND": "missing",
    "DEADLINE_EXCEEDED": "busy",
    "UNAUTHENTICATED": "denied",
    "PERMISSION_DENIED": "denied",
    "UNIMPLEMENTED": "denied",
    # By a server that ends, or by our own `close`; never by who waits.
    "CANCELLED": "away",
}


class GrpcTransport:
    """See `Transport`."""

    protocol: ClassVar[WireProtocol] = "grpc"

    def __init__(self, place: Place, access: Access) -> None:
        with needs_extra("client"):
            import grpc
            import tritonclient.grpc as triton
            from google.protobuf.json_format import MessageToDict
        self.address = place.address
        self._grpc, self._pb, self._result = grpc, triton.service_pb2, triton.InferResult
        self._dict = MessageToDict
        self._metadata = tuple(access.headers.items())
        if place.secure:
            self._channel = grpc.secure_channel(place.address, _credentials(grpc, access), options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(place.address, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._under_way: set[Any] = set()
        # Whether the last call that ended was answered: a call begun then has reached the server.
        self._answers = False
        self._changed = threading.Condition()

    def live(self, timeout_s: float) -> Call[bool]:  # noqa: ARG002 - gRPC calls end by themselves
        """See `Transport`."""
        return self._begin("ServerLive", self._pb.ServerLiveRequest(), lambda answer: bool(answer.live))

    def metadata(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:  # noqa: ARG002
        """See `Transport`."""
        return self._begin("ModelMetadata", self._pb.ModelMetadataRequest(name=model), self._json)

    def config(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:  # noqa: ARG002
        """See `Transport`."""
        request = self._pb.ModelConfigRequest(name=model)
        return self._begin("ModelConfig", request, lambda answer: self._json(answer)["config"])

    def models(self, timeout_s: float) -> Call[list[str]]:  # noqa: ARG002
        """See `Transport`."""
        request = self._pb.ModelStatisticsRequest()
        names = lambda answer: names_from_statistics(self._json(answer).get("model_stats", []))  # noqa: E731
        return self._begin("ModelStatistics", request, names)

    def infer(
        self,
        model: str,
        name: str,
        tensor: npt.NDArray[Any],
        timeout_s: float,  # noqa: ARG002
        request_id: str = "",
    ) -> Call[Outputs]:
        """See `Transport`."""
        request = self._pb.ModelInferRequest(model_name=model, id=request_id)
        request.inputs.add(name=name, datatype=DATA_TYPES[tensor.dtype], shape=tensor.shape)
        request.raw_input_contents.append(_raw(tensor))
        return self._begin("ModelInfer", request, self._outputs)

    def close(self, patience_s: float) -> None:
        """See `Transport`."""
        until = time.monotonic() + patience_s
        with self._changed:
            while self._under_way and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)
        self._channel.close()

    def _begin(self, method: str, request: Any, read: Callable[[Any], T]) -> Call[T]:
        call: Call[T] = Call()
        fault: Fault = "lost" if self._answers else "away"
        try:
            under_way = self._method(method).future(request, metadata=self._metadata)
        except ValueError:
            call.set_exception(CallError("the client is closed", "away"))
            return call
        with self._changed:
            self._under_way.add(under_way)
        under_way.add_done_callback(lambda done: self._end(done, call, read, fault))
        return call

    def _method(self, name: str) -> Any:
        """Return what begins calls of a method; making one takes longer than beginning a call."""
        if name not in self._methods:
            request, response = (getattr(self._pb, f"{name}{kind}") for kind in ("Request", "Response"))
            self._methods[name] = self._channel.unary_unary(
                _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
        return self._methods[name]

    def _end(self, done: Any, call: Call[T], read: Callable[[Any], T], fault: Fault) -> None:
        """Hand on how a call ended; runs in gRPC's thread.

        Args:
            done: gRPC's own call.
            call: Ours.
            read: Makes an answer of what came.
            fault: That of a call to which nothing came.
        """
        with self._changed:
            self._under_way.discard(done)
            self._changed.notify_all()
        try:
            code = done.code()
            self._answers = code is not self._grpc.StatusCode.UNAVAILABLE
            if code is self._grpc.StatusCode.OK:
                call.set_result(read(done.result()))
            elif code is self._grpc.StatusCode.UNAVAILABLE:
                self._ask_whether_away(str(done.details()), call, fault)
            else:
                call.set_exception(CallError(str(done.details()), _FAULTS.get(code.name, "broken")))
        except Exception as error:
            call.set_exception(error)

    def _ask_whether_away(self, reason: str, call: Call[Any], fault: Fault) -> None:
        """GRPC says UNAVAILABLE of a server that is away and Triton of a full queue: only an answer tells."""

        def tell(done: Any) -> None:
            self._answers = done.code() is self._grpc.StatusCode.OK
            call.set_exception(CallError(reason, "busy" if self._answers else fault))

        try:
            asking = self._method("ServerLive")
            asking.future(self._pb.ServerLiveRequest(), metadata=self._metadata).add_done_callback(tell)
        except ValueError:
            call.set_exception(CallError(reason, "away"))

    def _json(self, answer: Any) -> dict[str, Any]:
        return self._dict(answer, preserving_proto_field_name=True)

    def _outputs(self, answer: Any) -> Outputs:
        if len(answer.raw_output_contents) != len(answer.outputs) or any(
            o.datatype not in _TYPES for o in answer.outputs
        ):
            result = self._result(answer)
            tensors = {output.name: result.as_numpy(output.name) for output in answer.outputs}
            return Outputs(tensors, answer.model_version)
        # What `InferResult` does, without looking for every output among all the others.
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        tensors = {output.name: _tensor(output.datatype, output.shape, raw) for output, raw in pairs}
        return Outputs(tensors, answer.model_version)


def _raw(tensor: npt.NDArray[Any]) -> bytes:
    """Return a tensor as Triton takes it; BYTES is a length and the bytes, each."""
    if tensor.dtype != np.object_:
        return tensor.tobytes()
    return b"".join(part for value in tensor.flat for part in (struct.pack("<I", len(value)), value))


def _tensor(datatype: str, shape: Sequence[int], raw: bytes) -> npt.NDArray[Any]:
    """Return what `_raw` has written."""
    if datatype != "BYTES":
        # In memory that the answer owns, and nobody writes to.
        return np.frombuffer(raw, dtype=_TYPES[datatype]).reshape(shape)
    values, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        values.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    tensor = np.empty(len(values), dtype=np.object_)
    tensor[:] = values
    return tensor.reshape(shape)


def _credentials(grpc: Any, access: Access) -> Any:
    # The same checks, and the same words, as for https.
    access.tls.context()
    files = (access.tls.ca_file, access.tls.key_file, access.tls.cert_file)
    try:
        return grpc.ssl_channel_credentials(
            *(None if file is None else read_regular(file, MAX_SECRET_BYTES) for file in files)
        )
    except OSError as error:
        raise SettingsError(f"the TLS files can't be read: {error.strerror}") from error
