"""What Triton has loaded, and loading and unloading it through its manager models."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from plurum.errors import ServerError
from plurum.serving.metrics import models_at
from plurum.serving.staging import MANAGERS

__all__ = ["Admin"]

_HEALTH_S = 1.0


class Admin:
    """Management of one server.

    Args:
        http: URL of the HTTP endpoint, with scheme.
        metrics: URL of the metrics page, with scheme and path.
        folder: Where the manager models' sockets are.
    """

    def __init__(self, http: str, metrics: str, folder: Path) -> None:
        self._address, self._metrics, self._folder = urlsplit(http).netloc, metrics, folder

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
            ServerError: Triton could not, or not in time.
        """
        self._manage("load", model, timeout_s)

    def unload(self, model: str, timeout_s: float) -> None:
        """Unload a model; requests in flight are answered first, after this has returned.

        Raises:
            ServerError: Triton could not, or not in time.
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
        request = json.dumps({"action": action, "model": model}).encode() + b"\n"
        try:
            with self._manager(timeout_s) as connection, connection.makefile("rb") as file:
                connection.sendall(request)
                line = file.readline()
                if not line:
                    raise ConnectionResetError("its manager model has exited")
                refusal = json.loads(line)["error"]
        except (OSError, ValueError) as error:
            raise ServerError(f"Triton can't be told to {action} {model}: {error!r}") from error
        if refusal is not None:
            # The reason begins after what the Python backend puts before it; after it comes a Python trace.
            reason = (refusal.partition("message: ")[2] or refusal).partition("\nAt:")[0]
            raise ServerError(f"Triton could not {action} {model}: {' '.join(reason.split())[:400]}")

    def _manager(self, timeout_s: float) -> socket.socket:
        """Return a connection to a manager that listens.

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
                    return connection
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
