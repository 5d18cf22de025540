"""HTTP transport of the standard library, with tritonclient's bodies: tritonclient's own client supports one thread.

Each call has its own thread and connection: an idle connection would delay Triton's shutdown. Closing a connection
early does not harm Triton.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

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
from plurum.errors import ServerError, needs_extra

__all__ = ["HttpTransport"]

T = TypeVar("T")
_FAULTS: dict[int, Fault] = {
    **dict.fromkeys((400, 413, 415), "refused"),
    422: "spent",
    404: "missing",
    **dict.fromkeys((408, 429, 502, 503, 504), "busy"),
}


class _HttpCall(Call[T]):
    def __init__(self) -> None:
        super().__init__()
        self.connection: http.client.HTTPConnection | None = None

    def give_up(self) -> None:
        """Close the connection."""
        sock = self.connection.sock if self.connection else None
        # The waiting thread then reads the end of the stream.
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class HttpTransport(Transport):
    """See `Transport`."""

    protocol = "http"

    def __init__(self, server: ServerAddress, access: Access) -> None:
        with needs_extra("client"):
            import tritonclient.http as triton
        self.address = server.address
        self._triton = triton
        self._headers = access.headers
        self._context = access.tls.context() if server.secure else None

    def live(self, timeout_s: float) -> Call[bool]:
        """See `Transport`."""
        return self._start("GET", "/v2/health/live", timeout_s, lambda *_: True)

    def metadata(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """See `Transport`."""
        return self._start("GET", f"/v2/models/{model}", timeout_s, self._json)

    def config(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """See `Transport`."""
        return self._start("GET", f"/v2/models/{model}/config", timeout_s, self._json)

    def models(self, timeout_s: float) -> Call[list[str]]:
        """See `Transport`."""
        names = lambda *response: names_from_statistics(self._json(*response)["model_stats"])  # noqa: E731
        return self._start("GET", "/v2/models/stats", timeout_s, names)

    def infer(
        self,
        model: str,
        name: str,
        tensor: npt.NDArray[Any],
        timeout_s: float,
        request_id: str = "",
        parameters: Parameters | None = None,
    ) -> Call[Outputs]:
        """See `Transport`."""
        given = self._triton.InferInput(name, tensor.shape, DATA_TYPES[tensor.dtype])
        given.set_data_from_numpy(tensor, binary_data=True)
        body, json_bytes = self._triton.InferenceServerClient.generate_request_body(
            [given], request_id=request_id, parameters=dict(parameters or {})
        )
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        return self._start("POST", f"/v2/models/{model}/infer", timeout_s, self._outputs, body, headers)

    def close(self, patience_s: float) -> None:
        """Do nothing: no connection stays open."""

    def _start(
        self,
        method: str,
        path: str,
        timeout_s: float,
        read: Callable[[bytes, int | None], T],
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Call[T]:
        call: _HttpCall[T] = _HttpCall()

        def work() -> None:
            try:
                call.set_result(read(*self._send(call, method, path, timeout_s, body, headers or {})))
            except Exception as error:
                call.set_exception(error)

        # A daemon thread, so that the program can exit while a server does not respond.
        threading.Thread(target=work, name="plurum-client-http", daemon=True).start()
        return call

    def _send(
        self, call: _HttpCall[Any], method: str, path: str, timeout_s: float, body: bytes, headers: dict[str, str]
    ) -> tuple[bytes, int | None]:
        """Return the body of a response and, if it holds tensors, the length of its JSON part in bytes."""
        # The caller closes the connection earlier; this limit is for a server that can't be reached.
        connection = self._connection(timeout_s + 1.0)
        call.connection = connection
        fault: Fault = "away"
        try:
            connection.connect()
            fault = "lost"
            connection.request(method, path, body, headers | self._headers | {"Connection": "close"})
            response = connection.getresponse()
            content, length = response.read(), response.getheader("Inference-Header-Content-Length")
        except OSError as error:
            raise CallError(error.strerror or str(error) or repr(error), fault) from error
        except http.client.IncompleteRead as error:
            raise CallError("the response was interrupted", fault) from error
        except http.client.HTTPException as error:
            raise CallError("the server does not speak HTTP", "away") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            default: Fault = "broken" if response.status >= 500 else "denied"
            wait = response.getheader("Retry-After") or ""
            wait_s = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else 0.0
            may_retry = response.getheader("X-Should-Retry") != "false"
            raise CallError(
                _error_text(content), _FAULTS.get(response.status, default) if may_retry else "spent", wait_s
            )
        return content, None if length is None else int(length)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self.address, timeout=timeout_s)
        return http.client.HTTPSConnection(self.address, timeout=timeout_s, context=self._context)

    def _json(self, content: bytes, _: int | None) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{self.address} is not a Triton server: its response is not JSON") from error

    def _outputs(self, content: bytes, json_bytes: int | None) -> Outputs:
        result = self._triton.InferenceServerClient.parse_response_body(content, header_length=json_bytes)
        response = result.get_response()
        tensors = {output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]}
        return Outputs(tensors, str(response.get("model_version", "")))


def _error_text(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return content[:200].decode("utf-8", "replace") or "the server gave no reason"
