"""The two ways to a server, gRPC and HTTP, behind one shape. Both may be used from several threads at once.

`Transport.infer` and its siblings either return, or raise `RefusedError` when the server answered with an error, or
`ServerError` when none did.
"""

from __future__ import annotations

import http.client
import json
import logging
from typing import Any, ClassVar, Literal, NoReturn, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

from plurum.errors import ServerError, SettingsError, needs_extra

__all__ = [
    "DEFAULT_PORTS",
    "GrpcTransport",
    "HttpTransport",
    "RefusedError",
    "Transport",
    "WireProtocol",
    "transport_from_url",
]

WireProtocol = Literal["grpc", "http"]
DEFAULT_PORTS: dict[WireProtocol, int] = {"grpc": 8001, "http": 8000}
Tensors = dict[str, npt.NDArray[Any]]

# Questions about the server itself need no computing; one that takes longer than this does not answer at all.
_QUESTION_TIMEOUT_S = 10.0
_DATA_TYPES = {np.dtype(np.object_): "BYTES", np.dtype(np.uint8): "UINT8"}
# tritonclient's own bound: the largest message that protobuf can hold.
_MAX_MESSAGE_BYTES = 2**31 - 1
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The server answered with an error.

    Attributes:
        reason: Its words, in one line.
        kind: `missing` for a model it hasn't, `busy` for "not now", else `refused`.
    """

    def __init__(self, reason: str, kind: Literal["missing", "busy", "refused"]) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:1000]
        self.kind = kind


class Transport(Protocol):
    """What `EnsembleClient` needs of a protocol."""

    protocol: ClassVar[WireProtocol]
    address: str

    def metadata(self, model: str) -> dict[str, Any]:
        """Return a model's inputs and outputs, as Triton's metadata extension has them in JSON."""

    def config(self, model: str) -> dict[str, Any]:
        """Return a model's configuration, as `config.pbtxt` has it in JSON."""

    def models(self) -> list[str]:
        """Return the names of the models that are loaded, sorted; the index of the repository is often kept shut."""

    def infer(self, model: str, name: str, tensor: npt.NDArray[Any]) -> Tensors:
        """Return all outputs by name for one input."""

    def close(self) -> None:
        """Let go of the connection."""


def transport_from_url(url: str | None, protocol: WireProtocol | None, timeout_s: float) -> Transport:
    """Return the way to `host:port`, `http://host:port` or `grpc://host:port`; without one, to this machine.

    Raises:
        SettingsError: the URL is none of these, or its scheme isn't the protocol asked for.
        MissingExtraError: tritonclient is not installed.
    """
    text = url or "127.0.0.1"
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is no address of a server ({error}); give host:port") from error
    chosen = _protocol(parts, protocol, text)
    if not host or parts.path.strip("/") or parts.query or parts.username:
        raise SettingsError(f"{url!r} is no address of a server; give host:port, such as 127.0.0.1:8001")
    address = f"{f'[{host}]' if ':' in host else host}:{port or DEFAULT_PORTS[chosen]}"
    return GrpcTransport(address, timeout_s) if chosen == "grpc" else HttpTransport(address, timeout_s)


def _protocol(parts: SplitResult, wanted: WireProtocol | None, url: str) -> WireProtocol:
    known: tuple[WireProtocol, ...] = ("grpc", "http")
    if wanted is not None and wanted not in known:
        raise SettingsError(f"protocol {wanted!r} is not known; it is 'grpc' or 'http'")
    if not parts.scheme:
        return wanted or "grpc"
    for protocol in known:
        if parts.scheme == protocol and wanted in {None, protocol}:
            return protocol
    raise SettingsError(f"{url!r} can't be asked over {wanted or 'gRPC or HTTP'}; give host:port without a scheme")


class GrpcTransport:
    """Over tritonclient's gRPC client, one channel for all threads."""

    protocol: ClassVar[WireProtocol] = "grpc"

    def __init__(self, address: str, timeout_s: float) -> None:
        with needs_extra("client"):
            import tritonclient.grpc as triton
        self.address = address
        self._triton = triton
        self._timeout_s = timeout_s
        self._question = {"as_json": True, "client_timeout": min(timeout_s, _QUESTION_TIMEOUT_S)}
        # A proxy from the environment is for the web, not for a server that was named with its port.
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ]
        self._client = triton.InferenceServerClient(address, channel_args=options)

    def metadata(self, model: str) -> dict[str, Any]:
        """See `Transport`."""
        return self._ask("get_model_metadata", model, **self._question)  # type: ignore[no-any-return]

    def config(self, model: str) -> dict[str, Any]:
        """See `Transport`."""
        return self._ask("get_model_config", model, **self._question)["config"]  # type: ignore[no-any-return]

    def models(self) -> list[str]:
        """See `Transport`."""
        return _names(self._ask("get_inference_statistics", **self._question).get("model_stats", []))

    def infer(self, model: str, name: str, tensor: npt.NDArray[Any]) -> Tensors:
        """See `Transport`."""
        given = self._triton.InferInput(name, tensor.shape, _DATA_TYPES[tensor.dtype])
        given.set_data_from_numpy(tensor)
        result = self._ask("infer", model, [given], client_timeout=self._timeout_s)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def close(self) -> None:
        """See `Transport`."""
        self._client.close()

    def _ask(self, question: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self._client, question)(*args, **options)
        except self._triton.InferenceServerException as error:
            self._raise(error, options["client_timeout"])

    def _raise(self, error: Any, timeout_s: float) -> NoReturn:
        status, reason = str(error.status()).removeprefix("StatusCode."), str(error.message())
        if status == "DEADLINE_EXCEEDED":
            raise _late(self, timeout_s) from error
        # gRPC says UNAVAILABLE of a server that is away and Triton of a full queue: only an answer tells.
        if status == "UNAVAILABLE" and not self._live():
            raise _away(self, reason) from error
        kinds: dict[str, Literal["missing", "busy"]] = {"NOT_FOUND": "missing", "UNAVAILABLE": "busy"}
        raise RefusedError(reason, kinds.get(status, "refused")) from error

    def _live(self) -> bool:
        try:
            return bool(self._client.is_server_live(client_timeout=_QUESTION_TIMEOUT_S))
        except self._triton.InferenceServerException:
            return False


class HttpTransport:
    """Over the standard library, with tritonclient's bodies: its own HTTP client is for one thread alone.

    Each question has a connection of its own: an idle one would keep a Triton that is told to end from ending.
    """

    protocol: ClassVar[WireProtocol] = "http"

    def __init__(self, address: str, timeout_s: float) -> None:
        with needs_extra("client"):
            import tritonclient.http as triton
        self.address = address
        self._triton = triton
        self._timeout_s = timeout_s

    def metadata(self, model: str) -> dict[str, Any]:
        """See `Transport`."""
        return self._question("GET", f"/v2/models/{model}")  # type: ignore[no-any-return]

    def config(self, model: str) -> dict[str, Any]:
        """See `Transport`."""
        return self._question("GET", f"/v2/models/{model}/config")  # type: ignore[no-any-return]

    def models(self) -> list[str]:
        """See `Transport`."""
        return _names(self._question("GET", "/v2/models/stats")["model_stats"])

    def infer(self, model: str, name: str, tensor: npt.NDArray[Any]) -> Tensors:
        """See `Transport`."""
        given = self._triton.InferInput(name, tensor.shape, _DATA_TYPES[tensor.dtype])
        given.set_data_from_numpy(tensor, binary_data=True)
        client = self._triton.InferenceServerClient
        body, json_bytes = client.generate_request_body([given])
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        answer, json_bytes = self._send("POST", f"/v2/models/{model}/infer", body, headers, self._timeout_s)
        result = client.parse_response_body(answer, header_length=json_bytes)
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}

    def close(self) -> None:
        """See `Transport`: there is no connection to let go of."""

    def _question(self, method: str, path: str) -> Any:
        answer, _ = self._send(method, path, b"", {}, min(self._timeout_s, _QUESTION_TIMEOUT_S))
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ServerError(f"what answers at {self.address} is no Triton: it sends no JSON") from error

    def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str], timeout_s: float
    ) -> tuple[bytes, int | None]:
        """Return an answer's body and, of one with tensors in it, how long its JSON part is."""
        connection = http.client.HTTPConnection(self.address, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers | {"Connection": "close"})
            response = connection.getresponse()
            answer, length = response.read(), response.getheader("Inference-Header-Content-Length")
        except TimeoutError as error:
            raise _late(self, timeout_s) from error
        except OSError as error:
            raise _away(self, error.strerror or repr(error)) from error
        except http.client.HTTPException as error:
            raise _away(self, "what answers there does not speak HTTP") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            kinds: dict[int, Literal["missing", "busy"]] = {404: "missing", 503: "busy"}
            raise RefusedError(_error_text(answer), kinds.get(response.status, "refused"))
        return answer, None if length is None else int(length)


def _names(statistics: list[dict[str, Any]]) -> list[str]:
    return sorted({model["name"] for model in statistics})


def _error_text(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode("utf-8", "replace") or "an error without a word"


def _away(transport: Transport, reason: str) -> ServerError:
    _log.debug("%s: %s", transport.address, reason)
    # gRPC puts the cause last, behind the story of how it was found.
    cause = " ".join(reason.split()).rsplit(": ", 1)[-1][:200]
    name = {"grpc": "gRPC", "http": "HTTP"}[transport.protocol]
    return ServerError(
        f"no {name} server answers at {transport.address} ({cause}); "
        "start one with: plurum serve REPO, or name another with --url"
    )


def _late(transport: Transport, timeout_s: float) -> ServerError:
    return ServerError(
        f"the server at {transport.address} did not answer within {timeout_s:g} s; "
        "send it fewer images at once (batch size, concurrency) or look at its log"
    )
