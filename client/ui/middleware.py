"""ASGI middleware that accepts requests of the page itself, and none of other sites in the same browser."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PageMiddleware"]

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+)(:\d{1,5})?")
_HEADERS = {
    # Load nothing from other machines, and run no inline scripts.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Keep patients' images out of the browser's cache.
    "cache-control": "no-store",
}


class PageMiddleware:
    """Middleware in front of the page's ASGI application.

    `Host` must be an address or one of this machine's own names, so that no other site can point its name here (DNS
    rebinding). Forms and scripts of other sites are detected by `Sec-Fetch-Site`, or by `Origin` if the browser does
    not send that; programs other than browsers send neither.

    Args:
        app: The wrapped application.
        host: Name or address that the page listens on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if not self._is_own_name(headers.get("host", "")):
            refusal = "Host: expected an address or name of this machine, got another. Use its address."
            await PlainTextResponse(refusal, 421)(scope, receive, guarded)
        elif "transfer-encoding" in headers:
            # Browsers never send chunks, and many small ones take long to parse.
            refusal = "chunked bodies are not accepted. Send Content-Length."
            await PlainTextResponse(refusal, 411, {"connection": "close"})(scope, receive, guarded)
        elif scope["method"] not in {"GET", "HEAD"} and not _same_site(headers):
            await PlainTextResponse("forms of other sites are not accepted", 403)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _is_own_name(self, host: str) -> bool:
        if not (found := _HOST.fullmatch(host)):
            return False
        name = found[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _same_site(headers: Headers) -> bool:
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in {"same-origin", "none"}
    return origin is None or origin.partition("://")[2] == headers.get("host")
