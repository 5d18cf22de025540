"""Requests to the page, broken at random: answered, refused by name or cut off; never a 500 or a decision."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from plurum.client.ui import ReviewStore
from tests.client.samples import png, prediction
from tests.client.ui.browser import page_at
from tests.fuzz.mutations import Fuzz, broken_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_PATHS = (
    *("/", "/served", "/answers", "/review", "/corrections.csv", "/static/page.css", "/answers/SHA/review"),
    *("/pictures/SHA", "/evidence/SHA", "/evidence/SHA/0", "/review/SHA", "/review/SHA/undo"),
)
_ODD = (
    "9" * 5_000,
    "-1",
    "\0",
    "\ud800",
    "../../reviews.sqlite",
    "",
    "null",
    "1e400",
    "ä" * 90,
    "%",
    "\r\nx: y",
    "+",
    "0",
)


def request(draw: random.Random, sha256: str, host: str) -> bytes:
    """Return a request that a browser could send, with odd values in some places."""

    def odd(text: str) -> str:
        return draw.choice(_ODD) if draw.random() < 0.2 else text

    path = "/".join(quote(odd(part), errors="surrogatepass") for part in draw.choice(_PATHS).split("/"))
    path = path.replace("SHA", sha256) or "/"
    if draw.random() < 0.3:
        path += "?" + urlencode({odd("done"): odd(sha256), "label": odd("CE")}, errors="surrogatepass")
    # Nothing that decides: what is counted in the end is what was there.
    form = urlencode({odd("label"): odd("elephant"), odd("seen"): odd("7")}, errors="surrogatepass").encode()
    body = draw.choice((b"", form, png(draw.randrange(256)), form * 3_000))
    head = {
        "Host": odd(host),
        "Accept": odd("text/html"),
        "X-File-Name": quote(odd("scan.png"), errors="surrogatepass"),
        "Sec-Fetch-Site": odd("same-origin"),
        "Content-Type": odd("application/x-www-form-urlencoded"),
        "Content-Length": odd(str(len(body))),
        "Connection": "close",
    }
    lines = [f"{draw.choice(('GET', 'POST', 'HEAD', 'DELETE'))} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in head.items() if draw.random() < 0.9]
    whole = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body
    return broken_bytes(draw, whole) if draw.random() < 0.3 else whole


def status_of(address: str, whole: bytes) -> bytes:
    """Return the status of the first response; empty if the page closes the connection."""
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(whole)
            with contextlib.suppress(OSError):
                # It may have hung up by now.
                connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                line = file.readline()
    except ConnectionError:
        return b""
    except TimeoutError as error:
        raise AssertionError(f"no answer to {whole[:3000]!r}") from error
    return line.split(b" ")[1] if line else b""


def test_the_page(tmp_path: Path) -> None:
    fuzz, folder = Fuzz("page"), tmp_path / "reviews"
    # It has to end with nothing on its standard error, that is, without a traceback.
    with page_at("--url", "127.0.0.1:1", "--store", folder, "--max-image-mib", "1", "--timeout-s", "1") as url:
        address = url.removeprefix("http://")
        store = ReviewStore(folder)
        sha256 = store.add(png(7), "scan.png", prediction())
        for draw in fuzz.draws():
            whole = request(draw, sha256, address)
            status = status_of(address, whole)
            fuzz.read += status in {b"200", b"303"}
            # 503: the server that would answer about images is away.
            assert not status.startswith(b"5") or status == b"503", f"{fuzz}: {status!r} to {whole[:3000]!r}"
        assert [item.name for item in store.items()] == ["scan.png"]
        assert store.history(sha256) == []
