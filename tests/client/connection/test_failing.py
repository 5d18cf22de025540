"""The client and servers that are late, unavailable or failing: deadlines, retries, and several servers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import service_pb2 as pb

from plurum.client import AsyncEnsembleClient, EnsembleClient
from plurum.client.connection.addresses import WireProtocol
from plurum.errors import ImageError, ServerError, SettingsError
from plurum.serving import Server
from tests.client.relay import Relay

pytestmark = [pytest.mark.triton, pytest.mark.timing]
Pixels = npt.NDArray[np.uint8]
# Maximum delay of an error after the deadline; 50 ms on an otherwise idle machine.
LATE_S = 0.05


@pytest.fixture(scope="package")
def pixels(pixels: Pixels) -> Pixels:
    return pixels[:8]


@pytest.fixture
def silent() -> Iterator[str]:
    """A listener that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def second(new_relay: Callable[[], Relay]) -> Iterator[Relay]:
    with new_relay() as relay:
        yield relay


def client_of(relays: Relay | list[Relay], protocol: WireProtocol, timeout_s: float = 20) -> EnsembleClient:
    addresses = [relay.address for relay in (relays if isinstance(relays, list) else [relays])]
    return EnsembleClient(addresses, protocol, timeout_s=timeout_s)


def late_s(request: Callable[[], object], timeout_s: float) -> float:
    """Return the delay of an error after the deadline; the best of six, because the machine may be busy."""
    taken: list[float] = []
    while len(taken) < 6 and (not taken or min(taken) > timeout_s + LATE_S):
        begin = time.monotonic()
        with pytest.raises(ServerError, match="did not respond within"):
            request()
        taken.append(time.monotonic() - begin)
    assert min(taken) >= timeout_s - 0.001
    return min(taken) - timeout_s


def test_deadline_is_kept_by_the_first_request(protocol: WireProtocol, silent: str) -> None:
    with EnsembleClient(silent, protocol, timeout_s=0.3) as client:
        assert late_s(lambda: client.predict([b"image"]), 0.3) < LATE_S


def test_deadline_is_kept_in_flight(protocol: WireProtocol, relay: Relay, pixels: Pixels) -> None:
    with client_of(relay, protocol, 0.4) as client:
        # The first response may take longer than this deadline.
        while True:
            try:
                expected = client.predict([pixels[0]])
                break
            except ServerError:
                continue
        relay.frozen.set()
        assert late_s(lambda: client.predict([pixels[0]]), 0.4) < LATE_S
        relay.frozen.clear()
        time.sleep(0.3)
        assert client.predict([pixels[0]])[0].label == expected[0].label


def test_deadline_is_kept_by_the_asynchronous_client(protocol: WireProtocol, silent: str) -> None:
    async def request() -> None:
        async with AsyncEnsembleClient(silent, protocol, timeout_s=0.3) as client:
            begin = time.monotonic()
            answers = await asyncio.gather(*(client.predict([b"image"]) for _ in range(20)), return_exceptions=True)
            taken.append(time.monotonic() - begin)
            assert all(isinstance(answer, ServerError) for answer in answers)

    taken: list[float] = []
    while len(taken) < 6 and (not taken or min(taken) > 0.3 + LATE_S):
        asyncio.run(request())
    assert 0.299 <= min(taken) < 0.3 + LATE_S


class SlowHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A slow server that records the deadline and the cancellation of each call."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.deadlines_s: list[float | None] = []
        self.cancelled: list[bool] = []

    def service(self, _: Any) -> Any:
        def respond(_: bytes, context: Any) -> bytes:
            self.deadlines_s.append(context.time_remaining())
            time.sleep(self.takes_s)
            self.cancelled.append(not context.is_active())
            return pb.ModelMetadataResponse(name="ensemble").SerializeToString()  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(respond)


def test_grpc_calls_have_no_deadline_and_are_not_cancelled() -> None:
    """Triton can crash when a call is cancelled in flight."""
    handler = SlowHandler(takes_s=0.6)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def cancel() -> None:
        client = AsyncEnsembleClient(address)
        task = asyncio.create_task(client.predict([b"image"]))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()

    try:
        with EnsembleClient(address, timeout_s=0.2) as client, pytest.raises(ServerError, match="did not respond"):
            client.predict([b"image"])
        asyncio.run(cancel())
    finally:
        server.stop(2).wait()
    # Without a deadline, gRPC reports an extremely long time.
    assert len(handler.deadlines_s) == 2
    assert all(deadline is None or deadline > 1e9 for deadline in handler.deadlines_s)
    assert handler.cancelled == [False, False]


def test_client_waits_for_a_restart(protocol: WireProtocol, relay: Relay, pixels: Pixels) -> None:
    with client_of(relay, protocol) as client:
        expected = [answer.label for answer in client.predict(pixels)]
        relay.cut()
        timer = threading.Timer(1.0, relay.mend)
        timer.start()
        begin = time.monotonic()
        assert [answer.label for answer in client.predict(pixels, batch_size=2)] == expected
        assert time.monotonic() - begin > 0.9
        timer.join()


def test_request_that_ends_a_server_is_sent_twice(protocol: WireProtocol, relay: Relay, pixels: Pixels) -> None:
    message = r"disconnected after it received the request .* It is not sent again"
    with client_of(relay, protocol) as client:
        expected = client.predict([pixels[0]])
        relay.deadly_bytes = 8192
        with pytest.raises(ServerError, match=message) as caught:
            client.predict(pixels, batch_size=8)
        assert not isinstance(caught.value, ImageError)
        assert relay.deaths == 2
        relay.deadly_bytes = 1 << 40
        time.sleep(0.5)
        assert client.predict([pixels[0]]) == expected


def test_request_that_hangs_a_server_is_sent_once(protocol: WireProtocol, relay: Relay, pixels: Pixels) -> None:
    with client_of(relay, protocol) as client:
        client.predict([pixels[0]])
        relay.deadly_bytes, relay.dying_s = 8192, 3.0
        with pytest.raises(ServerError, match=r"after 3\.\d s\. The request may be the cause, and is not sent again"):
            client.predict(pixels, batch_size=8)
        assert relay.deaths == 1


def test_request_that_ends_a_restarted_server_is_sent_twice(
    protocol: WireProtocol, relay: Relay, pixels: Pixels
) -> None:
    with client_of(relay, protocol, 4) as client:
        client.predict([pixels[0]])
        relay.cut()
        with pytest.raises(ServerError):
            client.predict([pixels[0]])
        relay.deadly_bytes = 8192
        timer = threading.Timer(0.5, relay.mend)
        timer.start()
        with pytest.raises(ServerError, match=r"disconnected after it received the request"):
            client.predict(pixels, batch_size=8)
        timer.join()
        assert relay.deaths == 2


def test_unavailable_server_is_an_error_within_the_deadline(
    protocol: WireProtocol, relay: Relay, pixels: Pixels
) -> None:
    with client_of(relay, protocol, 1.0) as client:
        assert client.served
        relay.cut()
        begin = time.monotonic()
        with pytest.raises(ServerError, match=r"server responds at .* plurum serve REPO"):
            client.predict([pixels[0]])
        assert 0.1 < time.monotonic() - begin < 1.0 + LATE_S


def test_unavailable_servers_are_skipped(
    protocol: WireProtocol, url: str, silent: str, closed_port: str, pixels: Pixels
) -> None:
    alive = url.removeprefix("http://")
    with EnsembleClient([silent, closed_port, alive], protocol, timeout_s=10) as client:
        begin = time.monotonic()
        for _ in range(12):
            assert len(client.predict(pixels, batch_size=2)) == len(pixels)
        assert time.monotonic() - begin < 5


def test_requests_go_to_servers_in_turn_and_back_to_restarted_ones(
    protocol: WireProtocol, relay: Relay, second: Relay, pixels: Pixels
) -> None:
    with client_of([relay, second], protocol, 10) as client:
        client.predict(pixels, batch_size=1)
        client.predict(pixels, batch_size=1)
        assert relay.guests
        assert second.guests
        relay.cut()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)
        known = relay.guests
        relay.mend()
        deadline = time.monotonic() + 5
        while relay.guests == known and time.monotonic() < deadline:
            assert client.predict([pixels[0]])
        assert relay.guests > known
        second.cut()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)


def test_frozen_server_is_given_up_for_another(
    protocol: WireProtocol, relay: Relay, second: Relay, pixels: Pixels
) -> None:
    with client_of([relay, second], protocol, 20) as client:
        for _ in range(4):
            client.predict(pixels, batch_size=1)
        relay.frozen.set()
        begin = time.monotonic()
        assert len(client.predict(pixels, batch_size=1)) == len(pixels)
        assert time.monotonic() - begin < 10
        relay.frozen.clear()


def test_error_names_all_unavailable_servers(closed_port: str) -> None:
    other = closed_port.rpartition(":")[0] + ":1"
    with EnsembleClient([closed_port, other]) as client, pytest.raises(ServerError) as caught:
        client.predict([b"image"])
    assert str(caught.value).startswith(f"none of {closed_port}, {other} responds; no gRPC server responds at")


def test_empty_list_of_servers_is_refused() -> None:
    with pytest.raises(SettingsError, match="url: expected at least one address"):
        EnsembleClient([])


def test_closed_client_raises(served: Server, pixels: Pixels) -> None:
    client = EnsembleClient(served.urls.grpc)
    assert client.predict([pixels[0]])
    client.close()
    with pytest.raises(ServerError, match="the client is closed"):
        client.predict([pixels[0]])
