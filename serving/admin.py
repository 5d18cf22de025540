"""What Triton has loaded, and loading and unloading it through its manager models."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

from plurum.conventions import MANAGERS
from plurum.errors import ServerError
from plurum.serving.log import TritonLog
from plurum.serving.metrics import models_at

__all__ = ["Admin", "ManagerLostError"]

_HEALTH_S = 1.0
_POLL_S = 0.1
# For the manager's own word on a failure that Triton has logged.
_GRACE_S = 1.0


class ManagerLostError(ServerError):
    """A manager model exited or hung while it loaded or unloaded a model.

    Triton's Python backend frees the text of a failed load while the manager still reads it, so that some failed loads
    end the manager.

    Attributes:
        manager: The manager model's name; another one is there to load it again.
        reason: Why Triton could not load the model; None where it has not logged a failure.
    """

    def __init__(self, action: str, model: str, manager: str, reason: str | None) -> None:
        self.manager, self.reason = manager, reason
        super().__init__(f"Triton could not {action} {model}: {reason or 'its manager model has exited'}")


class Admin:
    """Management of one server.

    Args:
        http: URL of the HTTP endpoint, with scheme.
        metrics: URL of the metrics page, with scheme and path.
        folder: Where the manager models' sockets are.
        log: Triton's log.
    """

    def __init__(self, http: str, metrics: str, folder: Path, log: TritonLog) -> None:
        self._address, self._metrics, self._folder, self._log = urlsplit(http).netloc, metrics, folder, log

    def is_ready(self) -> bool:
        """Whether Triton says that it is ready, which it also does when a model's process has exited."""
        try:
            return self._status_of("/v2/health/ready") == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def is_loaded(self, model: str) -> bool:
        """Whether Triton accepts requests for a model, be its processes alive or not; True where it does not say."""
        try:
            return self._status_of(f"/v2/models/{model}/ready") == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return True

    def load(self, model: str, timeout_s: float) -> None:
        """Load a model, or load it again where its files have changed.

        Raises:
            ManagerLostError: the manager model exited or hung meanwhile, or was late.
            ServerError: Triton could not.
        """
        self._manage("load", model, timeout_s)

    def unload(self, model: str, timeout_s: float) -> None:
        """Unload a model; requests in flight are answered first, after this has returned.

        Raises:
            ManagerLostError: the manager model exited or hung meanwhile, or was late.
            ServerError: Triton could not.
        """
        self._manage("unload", model, timeout_s)

    def in_memory(self, timeout_s: float) -> set[str]:
        """Return the models that are loaded or still have requests inside.

        Raises:
            ServerError: Triton did not say so in time.
        """
        try:
            # An unloaded model's counters leave the page with the model itself, after its last request.
            return models_at(self._metrics, timeout_s)
        except OSError as error:
            raise ServerError(f"Triton does not say what is loaded: {error!r}") from error

    def _manage(self, action: str, model: str, timeout_s: float) -> None:
        since = self._log.size()
        request = json.dumps({"action": action, "model": model}).encode() + b"\n"
        try:
            manager, connection = self._connect(timeout_s)
            with connection:
                connection.sendall(request)
                line = self._response(connection, model, since, timeout_s)
                if not line:
                    # Where it hangs, it would keep every later request waiting.
                    _kill_peer(connection)
        except OSError as error:
            raise ServerError(f"Triton can't be told to {action} {model}: {error!r}") from error
        if not line:
            raise ManagerLostError(action, model, manager, self._log.load_failure(model, since))
        refusal = json.loads(line)["error"]
        if refusal is not None:
            # The reason begins after what the Python backend puts before it; after it comes a Python trace.
            reason = (refusal.partition("message: ")[2] or refusal).partition("\nAt:")[0]
            raise ServerError(f"Triton could not {action} {model}: {' '.join(reason.split())[:400]}")

    def _response(self, connection: socket.socket, model: str, since: int, timeout_s: float) -> bytes:
        """Return the manager's line; an empty one where it has exited, is late, or hangs after a failed load."""
        line, deadline, has_failed = b"", time.monotonic() + timeout_s, False
        connection.settimeout(_POLL_S)
        while not line.endswith(b"\n"):
            try:
                part = connection.recv(65536)
            except TimeoutError:
                if not has_failed and self._log.load_failure(model, since) is not None:
                    has_failed, deadline = True, min(deadline, time.monotonic() + _GRACE_S)
                if time.monotonic() > deadline:
                    return b""
            except ConnectionResetError:
                return b""
            else:
                if not part:
                    return b""
                line += part
        return line

    def _connect(self, timeout_s: float) -> tuple[str, socket.socket]:
        """Return a manager that listens, and a connection to it.

        Raises:
            OSError: none does.
        """
        failure = OSError("no manager model listens")
        # Through the folder's descriptor: a socket's path may have 107 bytes.
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        try:
            for name in MANAGERS:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(timeout_s)
                try:
                    connection.connect(f"/proc/self/fd/{folder}/{name}.sock")
                except OSError as error:
                    connection.close()
                    failure = error
                else:
                    return name, connection
        finally:
            os.close(folder)
        raise failure

    def _status_of(self, path: str) -> int:
        # A connection for each request: an idle one would keep Triton from ending.
        connection = http.client.HTTPConnection(self._address, timeout=_HEALTH_S)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().status
        finally:
            connection.close()


def _kill_peer(connection: socket.socket) -> None:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
