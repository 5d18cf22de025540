"""Who may come in: this machine's own browser pages, and no other site's that runs in the same browser."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Door"]

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+)(:\d{1,5})?")
_HEADERS = {
    # Nothing comes from anywhere else, and nothing written into a page runs.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Patients' images are not left behind in a browser's cache.
    "cache-control": "no-store",
}


class Door:
    """Stands before an ASGI application.

    A site whose name is made to point here (DNS rebinding) is known by its `Host`: addresses and this machine's own
    names alone are answered. Another site's forms and scripts are known by `Sec-Fetch-Site`, or by `Origin` where a
    browser does not send that; programs that are no browser send neither.

    Args:
        app: Behind it.
        host: Under which name or address the page was told to listen.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            refusal = "this page is asked for under a name that is not this machine's; use its address"
            await PlainTextResponse(refusal, 421)(scope, receive, guarded)
        elif "transfer-encoding" in headers:
            # Browsers never send one; its chunks can cost more than what they hold.
            refusal = "a body in chunks is not read; send it with Content-Length"
            await PlainTextResponse(refusal, 411, {"connection": "close"})(scope, receive, guarded)
        elif scope["method"] not in {"GET", "HEAD"} and not _same_site(headers):
            await PlainTextResponse("another site may not do this", 403)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _is_ours(self, host: str) -> bool:
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
