"""Triton's management endpoints, which are shut to others: what is loaded, and loading and unloading it."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from plurum.errors import ServerError
from plurum.serving.probe import reason_of

__all__ = ["Admin"]

_QUESTION_S = 1.0


class Admin:
    """Asks over HTTP, a connection for each question: an idle one would keep Triton from ending.

    Args:
        url: Of the HTTP endpoint, with scheme.
        key: Opens what is shut.
    """

    def __init__(self, url: str, key: str) -> None:
        self._address, self._key = urlsplit(url).netloc, key

    def is_ready(self) -> bool:
        """Whether Triton says that it is ready, which it also does when a model's process has died."""
        try:
            return self._ask("GET", "/v2/health/ready", _QUESTION_S)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def is_loaded(self, model: str) -> bool:
        """Whether Triton takes requests for a model, be its processes alive or not; True where it does not say."""
        try:
            return self._ask("GET", f"/v2/models/{model}/ready", _QUESTION_S)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return True

    def load(self, model: str, timeout_s: float) -> None:
        """Load a model, or load it anew where its files have changed.

        Raises:
            ServerError: Triton could not, or not in time.
        """
        self._tell("load", model, timeout_s)

    def unloaded(self, timeout_s: float) -> set[str]:
        """Return the models of which nothing is loaded any more, and no request inside.

        Raises:
            ServerError: Triton did not say so, or not in time.
        """
        try:
            status, text = self._ask("POST", "/v2/repository/index", timeout_s)
            versions = json.loads(text) if status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"Triton can't be asked what is loaded: {error!r}") from error
        if versions is None:
            raise ServerError(f"Triton does not say what is loaded: {reason_of(text)}")
        states: dict[str, set[str]] = {}
        for version in versions:
            states.setdefault(version["name"], set()).add(version.get("state", ""))
        return {name for name, found in states.items() if found == {"UNAVAILABLE"}}

    def unload(self, model: str, timeout_s: float) -> None:
        """Unload a model; requests in flight are answered first, after this has returned.

        Raises:
            ServerError: Triton could not, or not in time.
        """
        self._tell("unload", model, timeout_s)

    def _tell(self, action: str, model: str, timeout_s: float) -> None:
        try:
            status, text = self._ask("POST", f"/v2/repository/models/{model}/{action}", timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"Triton can't be told to {action} {model}: {error!r}") from error
        if status != http.HTTPStatus.OK:
            # After it comes a Python trace, where there is one.
            reason = reason_of(text).partition("\nAt:")[0]
            raise ServerError(f"Triton could not {action} {model}: {' '.join(reason.split())[:400]}")

    def _ask(self, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            connection.request(method, path, headers={"admin-key": self._key, "Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
