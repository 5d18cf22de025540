"""Send requests until a server responds: choose a server, retry, and wait for servers that failed.

A request that no server received is sent again. A request that a server had received when the server, or the process
of a model, failed may be the cause. It is sent again once, when a server is healthy, and alone: no other such request
of this client runs at the same time.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy.typing as npt

from plurum.client.connection.balance import Balance
from plurum.client.connection.calls import Call, Deadline, Flow, TurnQueue, Wait
from plurum.client.connection.payload import grey_tensor
from plurum.client.connection.transport import (
    CallError,
    Fault,
    Outputs,
    Parameters,
    Transport,
    late_error,
    server_error,
)
from plurum.conventions import HUNG_S, PROBE_ID
from plurum.errors import ServerError

__all__ = ["Request", "Retries", "UnansweredError"]

T = TypeVar("T")
# Time after which one of several servers gets a health check, and time limit of that check.
_PATIENCE_S = 2.0
# First and longest pause between attempts, seconds; the pause doubles each time, and is randomised.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
# `plurum serve` restarts a model whose process exited within seconds; an error that stays is the server's response.
_BROKEN_ATTEMPTS = 10
# Time limits of a probe and of a health check, seconds; they are sent again afterwards.
_PROBE_S, _LIVE_S = 10.0, 2.0
# Faults of a server that failed after it received a request. The request may be the cause.
_SUSPICIOUS = frozenset({"broken", "lost"})


@dataclass(frozen=True)
class Request:
    """A request to classify images.

    Attributes:
        model: Name of the model.
        name: Name of the model's input.
        tensor: Images.
        parameters: Parameters of the request, such as the images' patients.
    """

    model: str
    name: str
    tensor: npt.NDArray[Any]
    parameters: Parameters = field(default_factory=dict)

    def start(self, transport: Transport, timeout_s: float) -> Call[Outputs]:
        """Send the images."""
        return transport.infer(self.model, self.name, self.tensor, timeout_s, parameters=self.parameters)

    def probe(self, transport: Transport, timeout_s: float) -> Call[Outputs]:
        """Send a grey image instead, which is harmless, and which the server does not count."""
        return transport.infer(self.model, self.name, grey_tensor(self.tensor), timeout_s, PROBE_ID)


class UnansweredError(Exception):
    """A request got no usable response, and retries would not help.

    Attributes:
        transport: Connection to the last server.
        fault: Kind of its failure.
        reason: One-line message from the server or the network.
        explained: Error for the user.
        healed: True if a server is healthy again.
    """

    healed = False

    def __init__(self, transport: Transport, error: CallError) -> None:
        super().__init__(error.reason)
        self.transport = transport
        self.fault, self.reason = error.fault, error.reason
        self.explained = server_error(transport, error)


@dataclass
class Retries:
    """Sends requests to servers, and retries them.

    Attributes:
        balance: The servers.
        closed: True if the client is closed, and must not retry.
        turns: Queue of requests that a server had received when it failed.
    """

    balance: Balance
    closed: bool = False
    turns: TurnQueue = field(default_factory=TurnQueue)

    def send(self, request: Request, deadline: Deadline, *, together: bool) -> Flow[Outputs]:
        """Send images; if a server fails after it received them, send them once more, alone.

        Args:
            request: Images to send.
            deadline: Deadline of all attempts.
            together: True if there are several images. If the process of a model failed on those, only wait for it:
                the caller then sends each image alone.

        Raises:
            UnansweredError: the server refuses the images, or failed twice.
            ServerError: the deadline has passed.
        """
        try:
            outputs, _ = yield from self.first_response(
                lambda transport: request.start(transport, deadline.left_s), deadline, images=True
            )
        except UnansweredError as error:
            if error.fault not in _SUSPICIOUS:
                raise
            if together and error.fault == "broken":
                yield from self._healthy(deadline, request.probe, _PROBE_S)
                error.healed = True
                raise
            fault = error.fault
        else:
            return outputs
        return (yield from self.send_again(request, deadline, fault))

    def send_again(self, request: Request, deadline: Deadline, fault: Fault) -> Flow[Outputs]:
        """Wait until a server is healthy, and send images on which a server failed once more, alone.

        Raises:
            UnansweredError: the server refuses the images, or failed twice.
            ServerError: the deadline has passed.
        """
        turn = self.turns.enter()
        try:
            yield Wait((turn,), deadline.left_s)
            if not turn.done():
                raise late_error(self.balance.transports[0], deadline.timeout_s)
            while True:
                probe, limit_s = (request.probe, _PROBE_S) if fault == "broken" else (_live, _LIVE_S)
                transport = yield from self._healthy(deadline, probe, limit_s)
                try:
                    return (yield from self.result(request.start(transport, deadline.left_s), transport, deadline))
                except CallError as error:
                    if error.fault in {"away", "lost"}:
                        self.balance.failed(transport, error)
                    # In these cases the server did not accept the request.
                    if error.fault not in {"away", "busy", "missing"}:
                        raise UnansweredError(transport, error) from error
                    if deadline.left_s <= (pause_s := max(error.wait_s, _FIRST_PAUSE_S)):
                        raise UnansweredError(transport, error) from error
                yield Wait((), pause_s)
        finally:
            self.turns.leave(turn)

    def _healthy(
        self, deadline: Deadline, probe: Callable[[Transport, float], Call[Any]], limit_s: float
    ) -> Flow[Transport]:
        """Wait until a server is healthy, and return it.

        Args:
            deadline: Deadline of the request.
            probe: Function that starts the call that shows if a server is healthy.
            limit_s: Time limit of that call, seconds.

        Raises:
            UnansweredError: no server is healthy.
            ServerError: the deadline has passed.
        """
        failures = 0
        for tries in itertools.count(1):
            transport = yield from self._choose(deadline, patient=True)
            left = deadline.at_most(limit_s)
            try:
                yield from self.result(probe(transport, left.left_s), transport, left)
            except CallError as caught:
                error = caught
                if error.fault in {"refused", "denied", "spent"}:
                    # The server is healthy: it refuses the probe itself.
                    return transport
                failures += error.fault in {"broken", "missing"}
            except ServerError:
                if self.closed or not deadline.left_s:
                    raise
                error = CallError(f"no response within {limit_s:g} s", "away")
            else:
                return transport
            if error.fault in {"away", "lost"}:
                error.fault = "away"
                self.balance.failed(transport, error)
            pause_s = max(error.wait_s, _pause_s(tries))
            if failures >= _BROKEN_ATTEMPTS or deadline.left_s <= pause_s:
                raise UnansweredError(transport, error) from error
            yield Wait((), pause_s)
        raise AssertionError

    def first_response(
        self, start: Callable[[Transport], Call[T]], deadline: Deadline, *, images: bool = False
    ) -> Flow[tuple[T, Transport]]:
        """Return the first response, and the server that sent it.

        Args:
            start: Function that starts the call.
            deadline: Deadline of all attempts.
            images: True for a request about images, which is sent until a server accepts it. Other requests are sent
                to each server once.

        Raises:
            UnansweredError: no server sends a usable response, and a retry would not change that.
            ServerError: the deadline has passed.
        """
        tries, was_away = 0, False
        while True:
            if was_away:
                # If a request is sent while the connection is established, it is unknown if the server received it.
                transport = yield from self._healthy(deadline, _live, _LIVE_S)
            else:
                transport = yield from self._choose(deadline, patient=images)
            tries += 1
            try:
                return (yield from self.result(start(transport), transport, deadline)), transport
            except CallError as error:
                if error.fault == "lost" and not images:
                    # A request without images can't be the cause.
                    error.fault = "away"
                if error.fault in {"away", "lost"}:
                    self.balance.failed(transport, error)
                if not self._may_retry(error, tries, images=images):
                    raise UnansweredError(transport, error) from error
                was_away = error.fault == "away"
                elsewhere = was_away and self.balance.others_respond(transport)
                pause_s = 0.0 if elsewhere else max(error.wait_s, _pause_s(tries))
                if deadline.left_s <= pause_s:
                    raise UnansweredError(transport, error) from error
            if pause_s:
                yield Wait((), pause_s)

    def _may_retry(self, error: CallError, tries: int, *, images: bool) -> bool:
        if error.fault in {"refused", "spent"} or self.closed or (images and error.fault in _SUSPICIOUS):
            return False
        if images and error.fault in {"away", "busy"}:
            return True
        patient = _BROKEN_ATTEMPTS if images and error.fault == "missing" else 0
        return tries < max(patient, len(self.balance))

    def _choose(self, deadline: Deadline, *, patient: bool) -> Flow[Transport]:
        """Return the next server; while no server is known to respond, wait for the first that does."""
        while True:
            if self.closed:
                raise ServerError("the client is closed. Create another client.")
            if chosen := self.balance.choose():
                return chosen
            checks = self.balance.checks()
            last = self.balance.last_error
            if last and not checks and not (patient and deadline.left_s):
                raise ServerError(f"none of {self.balance.addresses} responds; {server_error(*last)}")
            if deadline.left_s == 0:
                raise late_error(self.balance.transports[0], deadline.timeout_s)
            yield Wait(checks, min(deadline.left_s, _FIRST_PAUSE_S))

    def result(self, call: Call[T], transport: Transport, deadline: Deadline) -> Flow[T]:
        """Wait for the result of a call; with several servers, only while its server responds to health checks.

        Raises:
            CallError: the call failed.
            ServerError: the deadline has passed.
        """
        started_s = time.monotonic()
        if len(self.balance) > 1:
            yield Wait((call,), min(deadline.left_s, _PATIENCE_S))
            if not call.done() and deadline.left_s > 0:
                live = transport.live(_PATIENCE_S)
                yield Wait((call, live), min(deadline.left_s, _PATIENCE_S))
                if not call.done() and not (live.done() and live.exception() is None) and deadline.left_s > 0:
                    call.give_up()
                    raise CallError(f"no response to a health check within {_PATIENCE_S:g} s", "lost")
        if not call.done():
            yield Wait((call,), deadline.left_s)
        if not call.done():
            call.give_up()
            raise late_error(transport, deadline.timeout_s)
        try:
            return call.result()
        except CallError as error:
            took_s = time.monotonic() - started_s
            if error.fault == "lost" and took_s >= HUNG_S:
                reason = f"{error.reason} after {took_s:.1f} s. The request may be the cause, and is not sent again."
                raise CallError(reason, "spent") from error
            raise


def _live(transport: Transport, timeout_s: float) -> Call[Any]:
    return transport.live(timeout_s)


def _pause_s(tries: int) -> float:
    """Return the pause after a number of attempts, seconds."""
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 (not a secret)
