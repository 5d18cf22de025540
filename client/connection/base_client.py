"""Parts that the clients for threads and for asyncio share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from plurum.client.connection.addresses import (
    Access,
    Tls,
    WireProtocol,
    access_from,
    address_from_url,
    warn_of_plain_key,
)
from plurum.client.connection.balance import Balance
from plurum.client.connection.predictions import Answer, Failure, Prediction
from plurum.client.connection.requests import Requester
from plurum.client.connection.retries import Retries
from plurum.client.connection.transport import Transport
from plurum.errors import ImageError, ServerError, SettingsError

__all__ = ["CLOSE_S", "BaseClient", "Urls", "raise_first"]

Urls = str | Sequence[str] | None
# Time limit of `close` for abandoned calls, which may still occupy the server, seconds.
CLOSE_S = 5.0


class BaseClient:
    """Connections and settings of a client; `EnsembleClient` describes the arguments.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument is invalid.
    """

    _default_concurrency: ClassVar[int]
    _requester: Requester

    def __init__(  # noqa: PLR0913 - one per setting
        self,
        url: Urls = None,
        protocol: WireProtocol | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 60.0,
        concurrency: int | None = None,
        api_key: str | None = None,
        tls: Tls | None = None,
        full: bool = False,
    ) -> None:
        self._concurrency = self._default_concurrency if concurrency is None else concurrency
        if self._concurrency < 1:
            raise SettingsError(f"concurrency: expected at least 1, got {concurrency}.")
        if not 0 < timeout_s < float("inf"):
            raise SettingsError(f"timeout_s: expected a number of seconds above 0, got {timeout_s:g}.")
        access = access_from(api_key, tls)
        urls: Sequence[str | None] = [url] if url is None or isinstance(url, str) else url
        if not urls:
            raise SettingsError("url: expected at least one address, got none.")
        balance = Balance([_transport(one, protocol, access) for one in dict.fromkeys(urls)])
        self._requester = Requester(Retries(balance), model, timeout_s, full=full)
        self._set_up(self._concurrency)

    def _set_up(self, concurrency: int) -> None:
        """Create what limits the number of requests in flight."""


def raise_first(answers: list[Answer]) -> list[Prediction]:
    """Return the predictions.

    Raises:
        ImageError: an image has no prediction; the message names the first one.
        ServerError: the first image has no prediction because the server failed.
    """
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        first, more = failures[0], f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        fault = ImageError if first.fault == "image" else ServerError
        raise fault(f"{first.name}: {first.reason}{more}")
    return [answer for answer in answers if isinstance(answer, Prediction)]


def _transport(url: str | None, protocol: WireProtocol | None, access: Access) -> Transport:
    server = address_from_url(url, protocol)
    warn_of_plain_key(server, access)
    if server.protocol == "grpc":
        from plurum.client.connection.over_grpc import GrpcTransport

        return GrpcTransport(server, access)
    from plurum.client.connection.over_http import HttpTransport

    return HttpTransport(server, access)
