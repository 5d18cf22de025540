"""Whole HTTP requests broken at random, sent to a gateway: no request gets a 500, a traceback, or the gateway's end."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import tempfile
from collections import Counter

import pytest

from tests.fuzz.mutations import broken_bytes, draws, json_bytes, odd_json
from tests.serving.gateway.gateways import LIVE, lonely_gateway, response_from

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_INFER = {"inputs": [{"name": "PIXELS", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}
_FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nabc\r\n--b--\r\n'
_HEADERS = (
    *("X-Deadline-Ms: 20", "X-Priority: bulk", "X-Request-ID: a-1", "Content-Type: multipart/form-data; boundary=b"),
    *("Inference-Header-Content-Length: 0", "Content-Encoding: identity", "Authorization: Bearer abc"),
    *("X-API-Key: abc", "Expect: 100-continue", "Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked"),
    "Connection: close",
)
_PATHS = (
    *("/predict", "/v2/models/ensemble/infer", "/v2/models/ensemble_pixels/infer", "/v2", "/v2/health/ready", "/"),
    *("/v2/models/ensemble", "/v2/models/ensemble/config", "/v2/models/ensemble/ready", "*", "http://x/v2", "//"),
    *("/%00", "/%ff"),
)


def _request(draw: random.Random) -> bytes:
    body = draw.choice((b"", b"abc", _FORM, json_bytes(draw, odd_json(draw, _INFER))))
    method = draw.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "PRI", "post"))
    lines = [f"{method} {draw.choice(_PATHS)} HTTP/1.{draw.choice('110')}", "Host: x", f"Content-Length: {len(body)}"]
    lines += draw.sample(_HEADERS, draw.randint(0, 4))
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    if draw.random() < 0.6:
        head = broken_bytes(draw, head, 2)
    return head + (broken_bytes(draw, body, 2) if draw.random() < 0.5 else body)


def test_requests_broken_at_random_get_no_500() -> None:
    statuses: Counter[str] = Counter()
    with (
        tempfile.TemporaryFile() as log,
        lonely_gateway(log=log.fileno(), deadline_s=0.02, max_deadline_s=0.05, receive_s=0.3) as one,
    ):
        for draw in draws("requests"):
            sent = _request(draw)
            with contextlib.suppress(OSError), contextlib.closing(one.connection()) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                answer = response_from(connection)
                status = answer[9:12].decode("latin-1")
                statuses[status] += 1
                assert re.fullmatch(r"200|100|40[01345]|408|413|415|431|503|504|", status), (status, sent, answer[:300])
        assert one.exchange(LIVE).startswith(b"HTTP/1.1 200")
        log.seek(0)
        said = log.read().decode()
        assert "Traceback" not in said, said[-4000:]
    # The gateway's own answers, and not only those of its parser.
    assert len(statuses) > 5, statuses
