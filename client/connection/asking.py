"""What is asked of servers, in what order, and what is done when one fails: for threads and for asyncio alike.

Every method that ends in a `Flow` is a conversation that `plurum.client.connection.calls` carries out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from plurum.client.connection.balance import Balance
from plurum.client.connection.calls import Call, Deadline, Flow, Wait
from plurum.client.connection.description import served_from_description
from plurum.client.connection.payload import (
    ENSEMBLE,
    ENSEMBLE_PIXELS,
    AnyImage,
    BatchSize,
    Item,
    batches,
    item_from_image,
    name_of,
    tensor_from_items,
)
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served, predictions_from_tensors
from plurum.client.connection.transport import (
    Access,
    CallError,
    Tls,
    Transport,
    WireProtocol,
    access_from,
    late_error,
    place_from_url,
    server_error,
    warn_of_plain_key,
)
from plurum.errors import ImageError, ServerError, SettingsError
from plurum.spec import release_from_version

__all__ = ["Asker", "Urls", "asker_from", "raise_first"]

T = TypeVar("T")
Urls = str | Sequence[str] | None
# Questions about the server itself need no computing; one that takes longer than this does not answer at all.
_QUESTION_S = 10.0
# After this, one of several servers is asked whether it lives, and has as long again to say so.
_PATIENCE_S = 2.0
# Pauses between attempts, seconds: twice as long each time, and never alike for two clients.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
# A request during which a server went away may be why: it is sent once more, and then no more.
_MOST_LOSSES = 1
# What hangs a server has been there for longer when `plurum serve` ends it: that waits for 3 s at least.
_HUNG_S = 2.5
# A server whose model has died is healed by `plurum serve` within seconds; an error that stays is its answer.
_BROKEN_ATTEMPTS = 10


def asker_from(
    urls: Urls, protocol: WireProtocol | None, model: str | None, timeout_s: float, api_key: str | None, tls: Tls | None
) -> Asker:
    """Return who asks the servers at `urls`.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument that can't be used.
    """
    if not 0 < timeout_s < float("inf"):
        raise SettingsError(f"a timeout of {timeout_s:g} s is none; give a number of seconds above 0")
    access = access_from(api_key, tls)
    given: list[str | None] = [urls] if urls is None or isinstance(urls, str) else list(urls)
    if not given:
        raise SettingsError("no server is named; give one host:port or several")
    return Asker(Balance([_transport(url, protocol, access) for url in dict.fromkeys(given)]), model, timeout_s)


def _transport(url: str | None, protocol: WireProtocol | None, access: Access) -> Transport:
    place = place_from_url(url, protocol)
    warn_of_plain_key(place, access)
    if place.protocol == "grpc":
        from plurum.client.connection.over_grpc import GrpcTransport

        return GrpcTransport(place, access)
    from plurum.client.connection.over_http import HttpTransport

    return HttpTransport(place, access)


def raise_first(answers: list[Answer]) -> list[Prediction]:
    """Return the predictions.

    Raises:
        ImageError: an image has none; the first is named.
        ServerError: the first has none, and it is not the image's fault.
    """
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        first, more = failures[0], f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        fault = ImageError if first.fault == "image" else ServerError
        raise fault(f"{first.name}: {first.reason}{more}")
    return [answer for answer in answers if isinstance(answer, Prediction)]


@dataclass
class Asker:
    """Asks servers about an ensemble.

    Attributes:
        balance: The servers.
        model: Which to ask; None asks `ensemble`, and `ensemble_pixels` about arrays of its size.
        timeout_s: How long one request may take, with all that is tried for it.
        known: What the server says of itself, once it was asked.
        closed: Nothing is tried any more.
    """

    balance: Balance
    model: str | None
    timeout_s: float
    known: Served | None = None
    closed: bool = False

    def served(self, deadline: Deadline) -> Flow[Served]:
        """Ask once what is served.

        Raises:
            ServerError: no server answers, or it serves no ensemble.
        """
        if self.known is None:
            self.known = yield from self._described(deadline.at_most(_QUESTION_S))
        return self.known

    def entries(self, images: Iterable[AnyImage], served: Served) -> Iterator[Item | Failure]:
        """Yield images ready for the wire, and those that never will be."""
        for index, image in enumerate(images):
            try:
                yield item_from_image(index, image, served.pixels_shape, encoded=served.takes_encoded)
            except ImageError as error:
                yield Failure(index, name_of(index, image), str(error))

    def batches(self, images: Iterable[AnyImage], served: Served, size: BatchSize) -> Iterator[list[Item | Failure]]:
        """Yield what is asked together; reads `images` as it goes."""
        return batches(self.entries(images, served), size)

    def answers(
        self, batch: list[Item | Failure], served: Served, deadline: Deadline, size: BatchSize
    ) -> Flow[list[Answer]]:
        """Ask about the images of a batch, and let `size` know how long it took; what failed before keeps its place.

        Raises:
            ServerError: no server has answered in time, or all fail.
        """
        items = [one for one in batch if isinstance(one, Item)]
        begun_s = time.monotonic()
        answers = iter((yield from self._asked(items, served, deadline, _BROKEN_ATTEMPTS)))
        size.note(len(items), time.monotonic() - begun_s)
        return [entry if isinstance(entry, Failure) else next(answers) for entry in batch]

    def _asked(self, items: list[Item], served: Served, deadline: Deadline, attempts: int) -> Flow[list[Answer]]:
        """Return the answers to images of one model; when that refuses them together, ask about each alone."""
        if not items:
            return []
        model, name, tensor = tensor_from_items(items)
        asked = self.model or model
        try:
            outputs, _ = yield from self._answered(
                lambda transport: transport.infer(asked, name, tensor, deadline.left_s), deadline, attempts
            )
        except _UnansweredError as error:
            if error.fault == "refused" and len(items) == 1:
                return [Failure(items[0].index, items[0].name, error.reason)]
            if error.fault not in {"refused", "broken"} or len(items) == 1:
                raise error.explained from error
            return (yield from self._asked_alone(items, served, deadline, error))
        release = release_from_version(outputs.version)
        return list(predictions_from_tensors(outputs.tensors, served, len(items), release))

    def _asked_alone(
        self, items: list[Item], served: Served, deadline: Deadline, error: _UnansweredError
    ) -> Flow[list[Answer]]:
        """Find out which of the images it is that the others had to suffer for."""
        answers: list[Answer] = []
        for item in items:
            try:
                answers += yield from self._asked([item], served, deadline, 2)
            except ServerError as fault:
                if deadline.left_s == 0:
                    raise
                answers.append(Failure(item.index, item.name, str(fault), "server"))
        if all(isinstance(answer, Failure) and answer.fault == "server" for answer in answers):
            raise error.explained
        return answers

    def _answered(
        self, ask: Callable[[Transport], Call[T]], deadline: Deadline, attempts: int
    ) -> Flow[tuple[T, Transport]]:
        """Ask until somebody answers, and say who did.

        Args:
            ask: Begins the call.
            deadline: For all attempts together.
            attempts: How often a server is asked that fails; 0 asks each once, whatever the reason.

        Raises:
            _UnansweredError: there was an answer, or none, that asking again won't change.
            ServerError: the time is over.
        """
        tries, losses = 0, list[CallError]()
        while True:
            transport = yield from self._chosen(deadline, patient=attempts > 0)
            if losses:
                yield from self._back(transport, losses[0], deadline)
            tries += 1
            try:
                return (yield from self._outcome(ask(transport), transport, deadline)), transport
            except CallError as error:
                if error.fault == "lost" and not attempts:
                    # A question about the server itself does no harm.
                    error.fault = "away"
                if error.fault in {"away", "lost"}:
                    self.balance.failed(transport, error)
                losses += [error] if error.fault == "lost" else []
                if not self._is_worth_more(error, tries, attempts) or len(losses) > _MOST_LOSSES:
                    raise _UnansweredError(transport, error) from error
                elsewhere = error.fault in {"away", "lost"} and self.balance.others_answer(transport)
                pause_s = 0.0 if elsewhere else max(error.wait_s, _pause_s(tries))
                if deadline.left_s <= pause_s:
                    raise _UnansweredError(transport, error) from error
            if pause_s:
                yield Wait((), pause_s)

    def _is_worth_more(self, error: CallError, tries: int, attempts: int) -> bool:
        if error.fault in {"refused", "spent"} or self.closed:
            return False
        if attempts and error.fault in {"away", "busy", "lost"}:
            return True
        patient = attempts if error.fault in {"broken", "missing"} else 0
        return tries < max(patient, len(self.balance))

    def _back(self, transport: Transport, error: CallError, deadline: Deadline) -> Flow[None]:
        """Wait until a server lives again that went away with a request, so that what ends it twice is known.

        Raises:
            _UnansweredError: it stays away.
        """
        while deadline.left_s and not self.closed:
            try:
                yield from self._outcome(transport.live(deadline.left_s), transport, deadline.at_most(_PATIENCE_S))
            except (CallError, ServerError):
                yield Wait((), min(deadline.left_s, _FIRST_PAUSE_S))
            else:
                return
        raise _UnansweredError(transport, CallError(error.reason, "away"))

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

    def _outcome(self, call: Call[T], transport: Transport, deadline: Deadline) -> Flow[T]:
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
            if error.fault == "lost" and took_s >= _HUNG_S:
                reason = f"{error.reason} after {took_s:.1f} s; the request may be why and is not sent again"
                raise CallError(reason, "spent") from error
            raise

    def _described(self, deadline: Deadline) -> Flow[Served]:
        model = self.model or ENSEMBLE
        try:
            metadata, transport = yield from self._answered(
                lambda transport: transport.metadata(model, deadline.left_s), deadline, 0
            )
        except _UnansweredError as error:
            yield from self._explain(error, model, deadline)
        outputs, inputs = _tensors_of(metadata, transport)
        try:
            # Of the same server: others may be about to change.
            config = yield from self._outcome(transport.config(model, deadline.left_s), transport, deadline)
        except CallError:
            # A server that faces others may keep its configs to itself; names are all that is lost.
            config = {}
        if self.model is None:
            try:
                pixels = yield from self._outcome(
                    transport.metadata(ENSEMBLE_PIXELS, deadline.left_s), transport, deadline
                )
                inputs = pixels["inputs"]
            except (CallError, KeyError, TypeError):
                inputs = []
        try:
            return served_from_description(config, outputs, inputs, encoded=self.model is None)
        except (KeyError, ValueError) as error:
            raise ServerError(f"the model {model!r} at {transport.address} is none of Plurum's") from error

    def _explain(self, error: _UnansweredError, model: str, deadline: Deadline) -> Flow[NoReturn]:
        place = error.transport.address
        if error.fault in {"away", "lost", "denied"}:
            raise error.explained from error
        if error.fault != "missing":
            raise ServerError(f"the server at {place} does not describe {model!r}: {error.reason}") from error
        try:
            names = yield from self._outcome(error.transport.models(deadline.left_s), error.transport, deadline)
            others = ", ".join(names) or "no model at all"
        except (CallError, ServerError, KeyError, TypeError):
            others = "what it keeps to itself"
        raise ServerError(
            f"the server at {place} has no model {model!r}, but {others}; "
            "serve an exported ensemble with: plurum serve REPO"
        ) from error


class _UnansweredError(Exception):
    """What a server said last, after all that was tried; or what was said of one that is away."""

    def __init__(self, transport: Transport, error: CallError) -> None:
        super().__init__(error.reason)
        self.transport = transport
        self.fault, self.reason = error.fault, error.reason
        self.explained = server_error(transport, error)


def _pause_s(tries: int) -> float:
    """Seconds before the next attempt after so many."""
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _tensors_of(metadata: Any, transport: Transport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        return metadata["outputs"], metadata.get("inputs", [])
    except (KeyError, TypeError) as error:
        raise ServerError(f"what answers at {transport.address} is no Triton") from error
