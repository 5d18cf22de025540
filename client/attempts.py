"""Sending requests until a server responds: which server, how often, and what is done when one fails.

A request that no server took is sent again. One that was inside a server when the server, or a model's process, broke
may be why: it is sent again once, when a server works again, and no other such request of this client runs meanwhile.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy.typing as npt

from plurum.client.balance import Balance
from plurum.client.calls import Call, Deadline, Flow, Turns, Wait
from plurum.client.payload import grey_tensor
from plurum.client.transport import CallError, Fault, Outputs, Transport, late_error, server_error
from plurum.conventions import HUNG_S, PROBE_ID
from plurum.errors import ServerError

__all__ = ["Attempts", "Request", "UnansweredError"]

T = TypeVar("T")
# After this, one of several servers is asked whether it lives, and has as long again to say so.
_PATIENCE_S = 2.0
# Pauses between attempts, seconds: twice as long each time, and never alike for two clients.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
# `plurum serve` heals a model whose process exited within seconds; an error that stays is the server's response.
_BROKEN_ATTEMPTS = 10
# A known image, or "are you alive?", that takes longer is sent anew; seconds.
_PROBE_S, _LIVE_S = 10.0, 2.0
# Errors of a server that broke while it had a request. The request may be why.
_SUSPICIOUS = frozenset({"broken", "lost"})


@dataclass(frozen=True)
class Request:
    """A request about images.

    Attributes:
        model: The model.
        name: Of its input.
        tensor: The images.
    """

    model: str
    name: str
    tensor: npt.NDArray[Any]

    def begin(self, transport: Transport, timeout_s: float) -> Call[Outputs]:
        """Send the images."""
        return transport.infer(self.model, self.name, self.tensor, timeout_s)

    def probe(self, transport: Transport, timeout_s: float) -> Call[Outputs]:
        """Send a grey image instead, which breaks no server, and which the server does not count."""
        return transport.infer(self.model, self.name, grey_tensor(self.tensor), timeout_s, PROBE_ID)


class UnansweredError(Exception):
    """What a server said last, after all that was tried; or what was said of one that is away.

    Attributes:
        healed: Whether a server works again since.
    """

    healed = False

    def __init__(self, transport: Transport, error: CallError) -> None:
        super().__init__(error.reason)
        self.transport = transport
        self.fault, self.reason = error.fault, error.reason
        self.explained = server_error(transport, error)


@dataclass
class Attempts:
    """Sends requests to servers.

    Attributes:
        balance: The servers.
        closed: Nothing is tried any more.
        turns: Order in which requests are sent again that were inside a server when it broke.
    """

    balance: Balance
    closed: bool = False
    turns: Turns = field(default_factory=Turns)

    def sent(self, request: Request, deadline: Deadline, *, together: bool) -> Flow[Outputs]:
        """Send images; if a server breaks while it has them, send them once more, alone.

        Args:
            request: The images.
            deadline: For all attempts together.
            together: Whether there are several images. A model's process that broke over those is only waited for:
                each image is then sent alone.

        Raises:
            UnansweredError: the server refuses them, or broke a second time.
            ServerError: the time is over.
        """
        try:
            outputs, _ = yield from self.answered(
                lambda transport: request.begin(transport, deadline.left_s), deadline, images=True
            )
        except UnansweredError as error:
            if error.fault not in _SUSPICIOUS:
                raise
            if together and error.fault == "broken":
                yield from self._healed(deadline, request.probe, _PROBE_S)
                error.healed = True
                raise
            fault = error.fault
        else:
            return outputs
        return (yield from self.sent_again(request, deadline, fault))

    def sent_again(self, request: Request, deadline: Deadline, fault: Fault) -> Flow[Outputs]:
        """Send images that were inside a server when it broke once more, alone, when a server works again.

        Raises:
            UnansweredError: the server refuses them, or broke a second time.
            ServerError: the time is over.
        """
        turn = self.turns.line_up()
        try:
            yield Wait((turn,), deadline.left_s)
            if not turn.done():
                raise late_error(self.balance.transports[0], deadline.timeout_s)
            while True:
                probe, limit_s = (request.probe, _PROBE_S) if fault == "broken" else (_live, _LIVE_S)
                transport = yield from self._healed(deadline, probe, limit_s)
                try:
                    return (yield from self.outcome(request.begin(transport, deadline.left_s), transport, deadline))
                except CallError as error:
                    if error.fault in {"away", "lost"}:
                        self.balance.failed(transport, error)
                    # In these cases the server did not take it.
                    if error.fault not in {"away", "busy", "missing"}:
                        raise UnansweredError(transport, error) from error
                    if deadline.left_s <= (pause_s := max(error.wait_s, _FIRST_PAUSE_S)):
                        raise UnansweredError(transport, error) from error
                yield Wait((), pause_s)
        finally:
            self.turns.leave(turn)

    def _healed(
        self, deadline: Deadline, probe: Callable[[Transport, float], Call[Any]], limit_s: float
    ) -> Flow[Transport]:
        """Wait until a server works again, and return it.

        Args:
            deadline: When to stop.
            probe: Begins the call that shows that a server works.
            limit_s: How long a call is waited for, seconds.

        Raises:
            UnansweredError: none does.
            ServerError: the time is over.
        """
        failures = 0
        for tries in itertools.count(1):
            transport = yield from self._chosen(deadline, patient=True)
            left = deadline.at_most(limit_s)
            try:
                yield from self.outcome(probe(transport, left.left_s), transport, left)
            except CallError as told:
                error = told
                if error.fault in {"refused", "denied", "spent"}:
                    # It works: these are its own words.
                    return transport
                failures += error.fault in {"broken", "missing"}
            except ServerError:
                if self.closed or not deadline.left_s:
                    raise
                error = CallError(f"no answer within {limit_s:g} s", "away")
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

    def answered(
        self, ask: Callable[[Transport], Call[T]], deadline: Deadline, *, images: bool = False
    ) -> Flow[tuple[T, Transport]]:
        """Ask until somebody answers, and say who did.

        Args:
            ask: Begins the call.
            deadline: For all attempts together.
            images: Whether the request is about images: it is sent until a server takes it. A question about a server
                itself is put to each server once.

        Raises:
            UnansweredError: there was an answer, or none, that asking again won't change.
            ServerError: the time is over.
        """
        tries, was_away = 0, False
        while True:
            if was_away:
                # Of a request that is sent while a connection is made, nobody knows whether the server got it.
                transport = yield from self._healed(deadline, _live, _LIVE_S)
            else:
                transport = yield from self._chosen(deadline, patient=images)
            tries += 1
            try:
                return (yield from self.outcome(ask(transport), transport, deadline)), transport
            except CallError as error:
                if error.fault == "lost" and not images:
                    # A question about the server itself does no harm.
                    error.fault = "away"
                if error.fault in {"away", "lost"}:
                    self.balance.failed(transport, error)
                if not self._is_worth_more(error, tries, images=images):
                    raise UnansweredError(transport, error) from error
                was_away = error.fault == "away"
                elsewhere = was_away and self.balance.others_answer(transport)
                pause_s = 0.0 if elsewhere else max(error.wait_s, _pause_s(tries))
                if deadline.left_s <= pause_s:
                    raise UnansweredError(transport, error) from error
            if pause_s:
                yield Wait((), pause_s)

    def _is_worth_more(self, error: CallError, tries: int, *, images: bool) -> bool:
        if error.fault in {"refused", "spent"} or self.closed or (images and error.fault in _SUSPICIOUS):
            return False
        if images and error.fault in {"away", "busy"}:
            return True
        patient = _BROKEN_ATTEMPTS if images and error.fault == "missing" else 0
        return tries < max(patient, len(self.balance))

    def _chosen(self, deadline: Deadline, *, patient: bool) -> Flow[Transport]:
        """Return whom to ask; while nobody is known to answer, wait for the first that does."""
        while True:
            if self.closed:
                raise ServerError("the client is closed; make another")
            if chosen := self.balance.choose():
                return chosen
            looks, last = self.balance.looks(), self.balance.last_error
            if last and not looks and not patient:
                raise self._nobody()
            if deadline.left_s == 0:
                raise (
                    self._nobody() if last and not looks else late_error(self.balance.transports[0], deadline.timeout_s)
                )
            yield Wait(looks, min(deadline.left_s, _FIRST_PAUSE_S))

    def _nobody(self) -> ServerError:
        if self.balance.last_error is None:
            return ServerError(f"no server answers at {self.balance.addresses}")
        transport, error = self.balance.last_error
        return ServerError(f"none of {self.balance.addresses} answers; {server_error(transport, error)}")

    def outcome(self, call: Call[T], transport: Transport, deadline: Deadline) -> Flow[T]:
        """Wait for a call; of one of several servers, as long as it says that it lives.

        Raises:
            CallError: see there.
            ServerError: the time is over.
        """
        begun_s = time.monotonic()
        if len(self.balance) > 1:
            yield Wait((call,), min(deadline.left_s, _PATIENCE_S))
            if not call.done() and deadline.left_s > 0:
                live = transport.live(_PATIENCE_S)
                yield Wait((call, live), min(deadline.left_s, _PATIENCE_S))
                if not call.done() and not (live.done() and live.exception() is None) and deadline.left_s > 0:
                    call.give_up()
                    raise CallError(f"no sign of life for {_PATIENCE_S:g} s", "lost")
        if not call.done():
            yield Wait((call,), deadline.left_s)
        if not call.done():
            call.give_up()
            raise late_error(transport, deadline.timeout_s)
        try:
            return call.result()
        except CallError as error:
            took_s = time.monotonic() - begun_s
            if error.fault == "lost" and took_s >= HUNG_S:
                reason = f"{error.reason} after {took_s:.1f} s; the request may be why and is not sent again"
                raise CallError(reason, "spent") from error
            raise


def _live(transport: Transport, timeout_s: float) -> Call[Any]:
    return transport.live(timeout_s)


def _pause_s(tries: int) -> float:
    """Seconds before the next attempt after so many."""
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
