"""What the client makes of servers that are late, away, or fail: deadlines, attempts, and several servers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import service_pb2 as pb

from plurum.client import AsyncEnsembleClient, EnsembleClient, Failure, Prediction
from plurum.client.connection.addresses import WireProtocol
from plurum.conventions import PROBE_ID
from plurum.errors import ImageError, PlurumError, ServerError, SettingsError
from plurum.run import Run
from plurum.serving import Server
from tests.client.relay import Relay

pytestmark = pytest.mark.triton
PROTOCOLS: tuple[WireProtocol, ...] = ("grpc", "http")
# What is promised; 50 ms on a machine where nothing else computes.
LATE_S = 0.05


@pytest.fixture(scope="module")
def pixels(run: Run) -> npt.NDArray[np.uint8]:
    return np.array(run.pixels()[:8])


@pytest.fixture
def relay(served: Server) -> Callable[[WireProtocol], Relay]:
    return lambda protocol: Relay(str(getattr(served.urls, protocol)).removeprefix("http://"))


@pytest.fixture
def silent() -> Iterator[str]:
    """A listener that lets everyone in and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as door:
        yield f"127.0.0.1:{door.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def late_s(ask: Callable[[], object], timeout_s: float) -> float:
    """How much later than promised an error came, seconds; the best of six, since others compute here, too."""
    taken: list[float] = []
    while len(taken) < 6 and (not taken or min(taken) > timeout_s + LATE_S):
        begin = time.monotonic()
        with pytest.raises(ServerError, match="did not respond within"):
            ask()
        taken.append(time.monotonic() - begin)
    assert min(taken) >= timeout_s - 0.001
    return min(taken) - timeout_s


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deadline_is_kept_before_anything_is_known(protocol: WireProtocol, silent: str) -> None:
    with EnsembleClient(silent, protocol, timeout_s=0.3) as client:
        assert late_s(lambda: client.predict([b"image"]), 0.3) < LATE_S


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deadline_is_kept_in_mid_flight(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=0.4) as client:
        # A first answer may take longer than a deadline this short.
        while True:
            try:
                expected = client.predict([pixels[0]])
                break
            except ServerError:
                continue
        way.frozen.set()
        assert late_s(lambda: client.predict([pixels[0]]), 0.4) < LATE_S
        way.frozen.clear()
        time.sleep(0.3)
        assert client.predict([pixels[0]])[0].label == expected[0].label


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deadline_is_kept_by_the_asynchronous_client(protocol: WireProtocol, silent: str) -> None:
    async def ask() -> None:
        async with AsyncEnsembleClient(silent, protocol, timeout_s=0.3) as client:
            begin = time.monotonic()
            answers = await asyncio.gather(*(client.predict([b"image"]) for _ in range(20)), return_exceptions=True)
            taken.append(time.monotonic() - begin)
            assert all(isinstance(answer, ServerError) for answer in answers)

    taken: list[float] = []
    while len(taken) < 6 and (not taken or min(taken) > 0.3 + LATE_S):
        asyncio.run(ask())
    assert 0.299 <= min(taken) < 0.3 + LATE_S


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that takes its time over every question, and notes how the calls look from there."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.told_s: list[float | None] = []
        self.cancelled: list[bool] = []

    def service(self, _: Any) -> Any:
        def answer(_: bytes, context: Any) -> bytes:
            self.told_s.append(context.time_remaining())
            time.sleep(self.takes_s)
            self.cancelled.append(not context.is_active())
            return pb.ModelMetadataResponse(name="ensemble").SerializeToString()  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(answer)


def test_grpc_is_told_of_no_deadline_and_nothing_is_cancelled() -> None:
    """Triton can crash when a call is cancelled in mid-flight."""
    recorder = Recorder(takes_s=0.6)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[recorder])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def cancelled() -> None:
        client = AsyncEnsembleClient(address)
        task = asyncio.create_task(client.predict([b"image"]))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()

    try:
        with EnsembleClient(address, timeout_s=0.2) as client, pytest.raises(ServerError, match="did not respond"):
            client.predict([b"image"])
        asyncio.run(cancelled())
    finally:
        server.stop(2).wait()
    # What gRPC says of a call without a deadline is some hundred thousand million years.
    assert len(recorder.told_s) == 2
    assert all(told is None or told > 1e9 for told in recorder.told_s)
    assert recorder.cancelled == [False, False]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_restarts_is_waited_for(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=20) as client:
        expected = [answer.label for answer in client.predict(pixels)]
        way.cut()
        timer = threading.Timer(1.0, way.mend)
        timer.start()
        begin = time.monotonic()
        assert [answer.label for answer in client.predict(pixels, batch_size=2)] == expected
        assert time.monotonic() - begin > 0.9
        timer.join()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_server_dies_of_is_sent_twice_and_no_more(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=20) as client:
        expected = client.predict([pixels[0]])
        way.deadly_bytes = 8192
        with pytest.raises(
            ServerError, match=r"disconnected after it received the request .* It is not sent again"
        ) as caught:
            client.predict(pixels, batch_size=8)
        assert not isinstance(caught.value, ImageError)
        assert way.deaths == 2
        way.deadly_bytes = 1 << 40
        time.sleep(0.5)
        assert client.predict([pixels[0]]) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_hangs_a_server_until_it_is_ended_is_sent_once(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=20) as client:
        client.predict([pixels[0]])
        way.deadly_bytes, way.dying_s = 8192, 3.0
        with pytest.raises(ServerError, match=r"after 3\.\d s\. The request may be the cause, and is not sent again"):
            client.predict(pixels, batch_size=8)
        assert way.deaths == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_server_dies_of_when_it_has_just_come_back_is_sent_twice_and_no_more(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=4) as client:
        client.predict([pixels[0]])
        way.cut()
        with pytest.raises(ServerError):
            client.predict([pixels[0]])
        way.deadly_bytes = 8192
        timer = threading.Timer(0.5, way.mend)
        timer.start()
        with pytest.raises(ServerError, match=r"disconnected after it received the request"):
            client.predict(pixels, batch_size=8)
        timer.join()
        assert way.deaths == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_stays_away_is_an_error_within_the_deadline(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with relay(protocol) as way, EnsembleClient(way.address, protocol, timeout_s=1.0) as client:
        assert client.served
        way.cut()
        begin = time.monotonic()
        with pytest.raises(ServerError, match=r"server responds at .* plurum serve REPO"):
            client.predict([pixels[0]])
        assert 0.1 < time.monotonic() - begin < 1.0 + LATE_S


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dead_ones_among_three_are_survived(
    protocol: WireProtocol, served: Server, silent: str, nobody: str, pixels: npt.NDArray[np.uint8]
) -> None:
    alive = str(getattr(served.urls, protocol)).removeprefix("http://")
    with EnsembleClient([silent, nobody, alive], protocol, timeout_s=10) as client:
        begin = time.monotonic()
        for _ in range(12):
            assert len(client.predict(pixels, batch_size=2)) == len(pixels)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_servers_are_asked_in_turn_and_one_that_dies_is_tried_again(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with (
        relay(protocol) as first,
        relay(protocol) as second,
        EnsembleClient([first.address, second.address], protocol, timeout_s=10) as client,
    ):
        client.predict(pixels, batch_size=1)
        client.predict(pixels, batch_size=1)
        assert first.guests
        assert second.guests
        first.cut()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)
        known = first.guests
        first.mend()
        deadline = time.monotonic() + 5
        while first.guests == known and time.monotonic() < deadline:
            assert client.predict([pixels[0]])
        assert first.guests > known
        second.cut()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_that_freezes_in_mid_flight_is_given_up_for_another(
    protocol: WireProtocol, relay: Callable[[WireProtocol], Relay], pixels: npt.NDArray[np.uint8]
) -> None:
    with (
        relay(protocol) as first,
        relay(protocol) as second,
        EnsembleClient([first.address, second.address], protocol, timeout_s=20) as client,
    ):
        for _ in range(4):
            client.predict(pixels, batch_size=1)
        first.frozen.set()
        begin = time.monotonic()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)
        assert time.monotonic() - begin < 10
        first.frozen.clear()


def test_when_none_of_several_answers_all_are_named(nobody: str) -> None:
    other = nobody.rpartition(":")[0] + ":1"
    with EnsembleClient([nobody, other]) as client, pytest.raises(ServerError) as caught:
        client.predict([b"image"])
    assert str(caught.value).startswith(f"none of {nobody}, {other} responds; no gRPC server responds at")


def test_no_server_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="url: expected at least one address"):
        EnsembleClient([])


@contextmanager
def faulty(
    served: Server, statuses: list[int], seen: list[str | None], probes: list[int] | None = None
) -> Iterator[str]:
    """The real server over HTTP, which first answers questions about images with these statuses; notes their keys.

    Args:
        served: The server.
        statuses: Of the first responses to requests about images.
        seen: Receives the key of each of these requests.
        probes: Statuses of the first responses to probes.
    """

    class Refuser(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_probe = PROBE_ID.encode() in body[:200]
            if not is_probe:
                seen.append(self.headers["Authorization"])
            due = (probes or []) if is_probe else statuses
            if due:
                self.answer(due.pop(0), b'{"error": "so it goes"}', None)
            else:
                self.forward(body)

        def forward(self, body: bytes | None) -> None:
            name = "Inference-Header-Content-Length"
            headers = {name: self.headers[name]} if self.headers[name] else {}
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(served.urls.http + self.path, body, headers)
                ) as reply:
                    self.answer(reply.status, reply.read(), reply.headers[name])
            except urllib.error.HTTPError as error:
                with error:
                    self.answer(error.code, error.read(), None)

        def answer(self, status: int, content: bytes, json_bytes: str | None) -> None:
            self.send_response(status)
            if json_bytes:
                self.send_header("Inference-Header-Content-Length", json_bytes)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuser) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("count", [1, 8])
def test_what_a_model_breaks_over_is_sent_once_more_when_it_works_again(
    served: Server, count: int, pixels: npt.NDArray[np.uint8]
) -> None:
    seen: list[str | None] = []
    probes = [500, 500]
    with faulty(served, [500], seen, probes) as url, EnsembleClient(url) as client:
        assert len(client.predict(pixels[:count])) == count
    # Of eight that were sent together, each is sent alone then.
    assert len(seen) == 1 + count
    assert not probes


@pytest.mark.parametrize("protocol", ["sync", "async"])
def test_what_a_model_breaks_over_twice_is_not_sent_again(
    served: Server, protocol: str, pixels: npt.NDArray[np.uint8]
) -> None:
    seen: list[str | None] = []

    async def ask(url: str) -> None:
        async with AsyncEnsembleClient(url) as client:
            await client.predict([pixels[0]])

    with (
        faulty(served, [500] * 1000, seen) as url,
        EnsembleClient(url) as client,
        pytest.raises(ServerError, match=r"^the server at .* failed: so it goes\. See its log"),
    ):
        asyncio.run(ask(url)) if protocol == "async" else client.predict([pixels[0]])
    assert len(seen) == 2


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_what_may_pass_is_asked_again(served: Server, status: int, pixels: npt.NDArray[np.uint8]) -> None:
    seen: list[str | None] = []
    with faulty(served, [status] * 2, seen) as url, EnsembleClient(url) as client:
        assert client.predict([pixels[0]])[0].label
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, ImageError, r"^image 0: so it goes"),
        (413, ImageError, r"^image 0: so it goes"),
        (401, ServerError, r"denies access: so it goes\. Give its key as PLURUM_API_KEY"),
        (403, ServerError, r"denies access"),
        (422, ServerError, r"received the request and failed: so it goes"),
    ],
)
def test_what_stays_is_not_asked_again(
    served: Server, status: int, error: type[PlurumError], message: str, pixels: npt.NDArray[np.uint8]
) -> None:
    seen: list[str | None] = []
    with faulty(served, [status] * 3, seen) as url, EnsembleClient(url) as client, pytest.raises(error, match=message):
        client.predict([pixels[0]])
    assert len(seen) == 1


def test_a_server_that_keeps_failing_is_no_image_s_fault(served: Server, pixels: npt.NDArray[np.uint8]) -> None:
    seen: list[str | None] = []
    with (
        faulty(served, [500] * 1000, seen, [500] * 1000) as url,
        EnsembleClient(url, timeout_s=2) as client,
        pytest.raises(ServerError, match=r"^the server at .* failed: so it goes\. See its log") as caught,
    ):
        client.predict(pixels[:3])
    assert not isinstance(caught.value, ImageError)
    assert len(seen) == 1


def test_one_image_that_a_server_fails_over_spoils_no_other(served: Server, pixels: npt.NDArray[np.uint8]) -> None:
    # The batch in vain, then each alone: the first in vain.
    with faulty(served, [500] * 2, []) as url, EnsembleClient(url) as client:
        answers = list(client.stream(pixels[:3]))
    assert [type(answer) for answer in answers] == [Failure, Prediction, Prediction]
    assert isinstance(answers[0], Failure)
    assert (answers[0].fault, answers[0].index) == ("server", 0)
    assert "failed: so it goes" in answers[0].reason


def test_a_key_is_sent_and_never_told(
    served: Server, pixels: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str | None] = []
    with faulty(served, [401], seen) as url:
        with EnsembleClient(url, api_key="open-sesame") as client, pytest.raises(ServerError) as caught:
            client.predict([pixels[0]])
        monkeypatch.setenv("PLURUM_API_KEY", "open-barley\n")
        with EnsembleClient(url) as client:
            client.predict([pixels[0]])
            assert "barley" not in repr(vars(client))
        with EnsembleClient(url, api_key="") as client:
            client.predict([pixels[0]])
    assert seen == ["Bearer open-sesame", "Bearer open-barley", None]
    assert "sesame" not in str(caught.value)
    assert "sesame" not in caplog.text
    assert "barley" not in caplog.text
    with pytest.raises(SettingsError) as refused:
        EnsembleClient(api_key="open\nbarley")
    assert "barley" not in str(refused.value)


def test_a_key_that_leaves_the_machine_in_plain_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    EnsembleClient("http://triton.example:8000", api_key="open-sesame").close()
    EnsembleClient("https://triton.example:8000", api_key="open-sesame").close()
    EnsembleClient("http://127.0.0.1:8000", api_key="open-sesame").close()
    assert [record.getMessage() for record in caplog.records] == [
        "triton.example:8000: the API key is sent without TLS; use https:// or grpcs://"
    ]


def test_a_closed_client_says_so(served: Server, pixels: npt.NDArray[np.uint8]) -> None:
    client = EnsembleClient(served.urls.grpc)
    assert client.predict([pixels[0]])
    client.close()
    with pytest.raises(ServerError, match="the client is closed"):
        client.predict([pixels[0]])
