"""Query Triton for its loaded models, and load, unload and drain models through the manager models."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

from plurum.conventions import MANAGERS
from plurum.errors import ServerError
from plurum.serving.triton.log import TritonLog
from plurum.serving.triton.metrics import models_at

__all__ = ["Admin", "ManagerLostError"]

_log = logging.getLogger(__name__)

_HEALTH_S = 1.0
_POLL_S = 0.1
_DRAIN_POLL_S = 0.05
# Time for the manager to report a failure that Triton has already logged.
_GRACE_S = 1.0


class ManagerLostError(ServerError):
    """A manager model exited or hung while it loaded or unloaded a model.

    Triton's Python backend frees the error text of a failed load while the manager still reads it. Some failed loads
    therefore crash the manager.

    Attributes:
        manager: Name of the manager model; the other manager reloads it.
        reason: The failure that Triton logged for the model; None if it logged none.
    """

    def __init__(self, action: str, model: str, manager: str, reason: str | None) -> None:
        self.manager, self.reason = manager, reason
        super().__init__(f"Triton could not {action} {model}: {reason or 'its manager model has exited'}")


class Admin:
    """Management interface of one server.

    Args:
        http: URL of the HTTP endpoint, with scheme.
        metrics: URL of the metrics page, with scheme and path.
        folder: Folder with the manager models' sockets.
        log: Triton's log.
    """

    def __init__(self, http: str, metrics: str, folder: Path, log: TritonLog) -> None:
        self._address, self._metrics, self._folder, self._log = urlsplit(http).netloc, metrics, folder, log

    def is_ready(self) -> bool:
        """Return True if Triton reports that it is ready; it also does so after a model's process has exited."""
        return self._status_of("/v2/health/ready") == http.HTTPStatus.OK

    def is_loaded(self, model: str) -> bool:
        """Return True if Triton accepts requests for a model, even if its processes exited, or does not respond."""
        return self._status_of(f"/v2/models/{model}/ready") in {http.HTTPStatus.OK, None}

    def load(self, model: str, timeout_s: float) -> None:
        """Load a model, or reload it if its files have changed.

        Raises:
            ManagerLostError: the manager model exited, hung or timed out.
            ServerError: Triton could not load the model.
        """
        self._manage("load", model, timeout_s)

    def unload(self, model: str, timeout_s: float) -> None:
        """Unload a model; Triton completes requests in flight first, which may take longer than this call.

        Raises:
            ManagerLostError: the manager model exited, hung or timed out.
            ServerError: Triton could not unload the model.
        """
        self._manage("unload", model, timeout_s)

    def drain(self, ensembles: list[str], timeout_s: float) -> None:
        """Unload `ensembles` and wait until they have no request in flight, at most `timeout_s`.

        Triton's own drain does not know ensembles: after SIGTERM it refuses their next steps, and most requests in
        flight are lost. Requests still in flight at the end, or when the server fails to respond, are abandoned.
        """
        deadline = time.monotonic() + timeout_s
        try:
            for model in ensembles:
                self.unload(model, timeout_s)
            while time.monotonic() < deadline:
                if self.list_in_memory(timeout_s).isdisjoint(ensembles):
                    return
                time.sleep(_DRAIN_POLL_S)
            _log.warning("requests still in flight after %g s were abandoned", timeout_s)
        except ServerError as error:
            _log.warning("could not wait for requests in flight: %s", error)

    def list_in_memory(self, timeout_s: float) -> set[str]:
        """Return the models that are loaded or still have requests in flight.

        Raises:
            ServerError: the metrics page could not be read in time.
        """
        try:
            # Triton removes an unloaded model's counters together with the model, after its last request.
            return models_at(self._metrics, timeout_s)
        except OSError as error:
            raise ServerError(f"the models that Triton has loaded could not be listed: {error!r}") from error

    def _manage(self, action: str, model: str, timeout_s: float) -> None:
        since = self._log.size()
        request = json.dumps({"action": action, "model": model}).encode() + b"\n"
        try:
            manager, connection = self._connect(timeout_s)
            with connection:
                connection.sendall(request)
                line = self._receive(connection, model, since, timeout_s)
                if not line:
                    # A hanging manager would block every later request.
                    _kill_peer(connection)
        except OSError as error:
            raise ServerError(f"no manager model could be reached to {action} {model}: {error!r}") from error
        if not line:
            raise ManagerLostError(action, model, manager, self._log.load_failure(model, since))
        refusal = json.loads(line)["error"]
        if refusal is not None:
            # The Python backend puts a prefix before the reason and a Python traceback after it.
            reason = (refusal.partition("message: ")[2] or refusal).partition("\nAt:")[0]
            raise ServerError(f"Triton could not {action} {model}: {' '.join(reason.split())[:400]}")

    def _receive(self, connection: socket.socket, model: str, since: int, timeout_s: float) -> bytes:
        """Return the manager's line; an empty one if it exited, timed out, or hangs after a failed load."""
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
        """Return the name of a manager that accepts connections, and a connection to it.

        Raises:
            OSError: neither manager accepts connections.
        """
        failure = OSError("no manager model listens")
        # Connect through the folder's descriptor: a socket's path is limited to 107 bytes.
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

    def _status_of(self, path: str) -> int | None:
        """Return the status of a response; None if Triton does not respond."""
        # One connection per request: an idle connection would delay Triton's shutdown.
        connection = http.client.HTTPConnection(self._address, timeout=_HEALTH_S)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _kill_peer(connection: socket.socket) -> None:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
