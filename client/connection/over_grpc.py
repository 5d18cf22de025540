"""gRPC transport, with one channel for all threads.

Calls have no gRPC deadline and are never cancelled: Triton 2.51 can crash when a call is cancelled in flight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from plurum.client.connection.addresses import Access, ServerAddress
from plurum.client.connection.calls import Call
from plurum.client.connection.transport import (
    DATA_TYPES,
    CallError,
    Fault,
    Outputs,
    Parameters,
    Transport,
    names_from_statistics,
)
from plurum.errors import SettingsError, needs_extra
from plurum.predictions.wire import raw_from_bytes, tensors_from_response
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = ["GrpcTransport"]

T = TypeVar("T")
_SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = (
    # Ignore the proxy of the environment, which is for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Reconnect to a restarted server at once: gRPC's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, the time limit of an attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Clients with different keys or certificates must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)
_FAULTS: dict[str, Fault] = {
    "INVALID_ARGUMENT": "refused",
    "OUT_OF_RANGE": "refused",
    "RESOURCE_EXHAUSTED": "refused",
    "NOT_FOUND": "missing",
    "DEADLINE_EXCEEDED": "busy",
    "UNAUTHENTICATED": "denied",
    "PERMISSION_DENIED": "denied",
    "UNIMPLEMENTED": "denied",
    # The server is shutting down, or the client was closed.
    "CANCELLED": "away",
}


class GrpcTransport(Transport):
    """See `Transport`."""

    protocol = "grpc"

    def __init__(self, server: ServerAddress, access: Access) -> None:
        with needs_extra("client"):
            import grpc
            import tritonclient.grpc as triton
            from google.protobuf.json_format import MessageToDict
        self.address = server.address
        self._grpc, self._pb = grpc, triton.service_pb2
        self._dict = MessageToDict
        self._metadata = tuple(access.headers.items())
        if server.secure:
            self._channel = grpc.secure_channel(server.address, _credentials(grpc, access), options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(server.address, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._in_flight: set[Any] = set()
        # True if the last call got a response: a call that was started then has reached the server.
        self._responded = False
        self._changed = threading.Condition()

    def live(self, timeout_s: float) -> Call[bool]:  # noqa: ARG002 (gRPC calls are never cut off)
        """See `Transport`."""
        return self._start("ServerLive", self._pb.ServerLiveRequest(), lambda response: bool(response.live))

    def metadata(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:  # noqa: ARG002
        """See `Transport`."""
        return self._start("ModelMetadata", self._pb.ModelMetadataRequest(name=model), self._json)

    def config(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:  # noqa: ARG002
        """See `Transport`."""
        request = self._pb.ModelConfigRequest(name=model)
        return self._start("ModelConfig", request, lambda response: self._json(response)["config"])

    def models(self, timeout_s: float) -> Call[list[str]]:  # noqa: ARG002
        """See `Transport`."""
        request = self._pb.ModelStatisticsRequest()
        names = lambda response: names_from_statistics(self._json(response).get("model_stats", []))  # noqa: E731
        return self._start("ModelStatistics", request, names)

    def infer(
        self,
        model: str,
        name: str,
        tensor: npt.NDArray[Any],
        timeout_s: float,  # noqa: ARG002
        request_id: str = "",
        parameters: Parameters | None = None,
    ) -> Call[Outputs]:
        """See `Transport`."""
        request = self._pb.ModelInferRequest(model_name=model, id=request_id)
        for key, value in (parameters or {}).items():
            setattr(request.parameters[key], "bool_param" if isinstance(value, bool) else "string_param", value)
        request.inputs.add(name=name, datatype=DATA_TYPES[tensor.dtype], shape=tensor.shape)
        is_bytes = tensor.dtype == np.object_
        request.raw_input_contents.append(raw_from_bytes(tensor.flat) if is_bytes else tensor.tobytes())
        return self._start("ModelInfer", request, _outputs)

    def close(self, patience_s: float) -> None:
        """See `Transport`."""
        until = time.monotonic() + patience_s
        with self._changed:
            while self._in_flight and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)
        self._channel.close()

    def _start(self, method: str, request: Any, read: Callable[[Any], T]) -> Call[T]:
        call: Call[T] = Call()
        fault: Fault = "lost" if self._responded else "away"
        try:
            sent = self._method(method).future(request, metadata=self._metadata)
        except ValueError:
            call.set_exception(CallError("the client is closed", "away"))
            return call
        with self._changed:
            self._in_flight.add(sent)
        sent.add_done_callback(lambda done: self._end(done, call, read, fault))
        return call

    def _method(self, name: str) -> Any:
        """Return the callable of a method; creating it takes longer than a call."""
        if name not in self._methods:
            request, response = (getattr(self._pb, f"{name}{kind}") for kind in ("Request", "Response"))
            self._methods[name] = self._channel.unary_unary(
                _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
        return self._methods[name]

    def _end(self, done: Any, call: Call[T], read: Callable[[Any], T], fault: Fault) -> None:
        """Pass on the end of a call; runs in gRPC's thread.

        Args:
            done: Call of gRPC.
            call: Call of the client.
            read: Function that converts the response.
            fault: Fault of a call without a response.
        """
        with self._changed:
            self._in_flight.discard(done)
            self._changed.notify_all()
        try:
            code = done.code()
            self._responded = code is not self._grpc.StatusCode.UNAVAILABLE
            if code is self._grpc.StatusCode.OK:
                call.set_result(read(done.result()))
            elif code is self._grpc.StatusCode.UNAVAILABLE:
                self._check_live(str(done.details()), call, fault)
            else:
                call.set_exception(CallError(str(done.details()), _FAULTS.get(code.name, "broken")))
        except Exception as error:
            call.set_exception(error)

    def _check_live(self, reason: str, call: Call[Any], fault: Fault) -> None:
        """Find out if the server is away: gRPC reports UNAVAILABLE then, and Triton reports it for a full queue."""

        def end(done: Any) -> None:
            self._responded = done.code() is self._grpc.StatusCode.OK
            call.set_exception(CallError(reason, "busy" if self._responded else fault))

        try:
            live = self._method("ServerLive")
            live.future(self._pb.ServerLiveRequest(), metadata=self._metadata).add_done_callback(end)
        except ValueError:
            call.set_exception(CallError(reason, "away"))

    def _json(self, response: Any) -> dict[str, Any]:
        return self._dict(response, preserving_proto_field_name=True)


def _outputs(response: Any) -> Outputs:
    return Outputs(tensors_from_response(response), response.model_version)


def _credentials(grpc: Any, access: Access) -> Any:
    # Check as for https, with the same messages.
    access.tls.context()
    files = (access.tls.ca_file, access.tls.key_file, access.tls.cert_file)
    try:
        return grpc.ssl_channel_credentials(
            *(None if file is None else read_regular(file, MAX_SECRET_BYTES) for file in files)
        )
    except OSError as error:
        raise SettingsError(f"the TLS files can't be used: {error.strerror}. Give PEM files.") from error
