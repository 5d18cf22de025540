"""HTTP servers for tests: each is a function from requests to responses."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

__all__ = ["StubRequest", "StubResponse", "forward", "http_server"]

_JSON_SIZE = "Inference-Header-Content-Length"


class StubRequest(NamedTuple):
    """A request that a server received."""

    method: str
    path: str
    headers: Message
    body: bytes


class StubResponse(NamedTuple):
    """A response to send."""

    status: int
    body: bytes
    json_size: str | None = None


@contextmanager
def http_server(respond: Callable[[StubRequest], StubResponse]) -> Iterator[str]:
    """Run a server on this machine, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        # Headers and body are sent together: apart they would wait for each other's acknowledgement.
        protocol_version, wbufsize = "HTTP/1.1", -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            response = respond(StubRequest(self.command, self.path, self.headers, body))
            self.send_response(response.status)
            if response.json_size:
                self.send_header(_JSON_SIZE, response.json_size)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def forward(url: str, request: StubRequest) -> StubResponse:
    """Send a request to the server at `url`, and return its response."""
    headers = {_JSON_SIZE: request.headers[_JSON_SIZE]} if _JSON_SIZE in request.headers else {}
    body = request.body if request.method == "POST" else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url + request.path, body, headers)) as reply:
            return StubResponse(reply.status, reply.read(), reply.headers[_JSON_SIZE])
    except urllib.error.HTTPError as error:
        with error:
            return StubResponse(error.code, error.read())
