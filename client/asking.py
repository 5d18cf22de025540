"""What is asked of servers, in what order, and what is done when one fails: for threads and for asyncio alike.

Every method that ends in a `Flow` is a conversation that `plurum.client.calls` carries out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from plurum.client.attempts import Attempts, Request, UnansweredError
from plurum.client.balance import Balance
from plurum.client.calls import Deadline, Flow
from plurum.client.description import served_from_description
from plurum.client.payload import (
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
from plurum.client.predictions import Answer, Failure, Prediction, Served, predictions_from_tensors
from plurum.client.transport import (
    Access,
    CallError,
    Tls,
    Transport,
    WireProtocol,
    access_from,
    place_from_url,
    warn_of_plain_key,
)
from plurum.errors import ImageError, ServerError, SettingsError
from plurum.spec import release_from_version

__all__ = ["Asker", "Urls", "asker_from", "raise_first"]

T = TypeVar("T")
Urls = str | Sequence[str] | None
# Questions about the server itself need no computing; one that takes longer than this does not answer at all.
_QUESTION_S = 10.0


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
    balance = Balance([_transport(url, protocol, access) for url in dict.fromkeys(given)])
    return Asker(Attempts(balance), model, timeout_s)


def _transport(url: str | None, protocol: WireProtocol | None, access: Access) -> Transport:
    place = place_from_url(url, protocol)
    warn_of_plain_key(place, access)
    if place.protocol == "grpc":
        from plurum.client.over_grpc import GrpcTransport

        return GrpcTransport(place, access)
    from plurum.client.over_http import HttpTransport

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
        attempts: Sends requests to the servers.
        model: Which to ask; None asks `ensemble`, and `ensemble_pixels` about arrays of its size.
        timeout_s: How long one request may take, with all that is tried for it.
        known: What the server says of itself, once it was asked.
    """

    attempts: Attempts
    model: str | None
    timeout_s: float
    known: Served | None = None

    def close(self) -> None:
        """Try nothing any more."""
        self.attempts.closed = True

    @property
    def transports(self) -> list[Transport]:
        """The ways to all servers."""
        return self.attempts.balance.transports

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
        answers = iter((yield from self._asked(items, served, deadline)))
        size.note(len(items), time.monotonic() - begun_s)
        return [entry if isinstance(entry, Failure) else next(answers) for entry in batch]

    def _asked(
        self, items: list[Item], served: Served, deadline: Deadline, *, suspect: bool = False
    ) -> Flow[list[Answer]]:
        """Return the answers to images of one model; when that refuses them together, ask about each alone.

        Args:
            items: The images.
            served: What the server says of itself.
            deadline: For all attempts together.
            suspect: Whether a server broke while it had them: then they are sent once, alone.
        """
        if not items:
            return []
        model, name, tensor = tensor_from_items(items)
        request = Request(self.model or model, name, tensor)
        try:
            if suspect:
                outputs = yield from self.attempts.sent_again(request, deadline, "broken")
            else:
                outputs = yield from self.attempts.sent(request, deadline, together=len(items) > 1)
        except UnansweredError as error:
            if error.fault == "refused" and len(items) == 1:
                return [Failure(items[0].index, items[0].name, error.reason)]
            if error.fault not in {"refused", "broken"} or len(items) == 1:
                raise error.explained from error
            return (yield from self._asked_alone(items, served, deadline, error))
        release = release_from_version(outputs.version)
        return list(predictions_from_tensors(outputs.tensors, served, len(items), release))

    def _asked_alone(
        self, items: list[Item], served: Served, deadline: Deadline, error: UnansweredError
    ) -> Flow[list[Answer]]:
        """Find out which of the images it is that the others had to suffer for."""
        suspect = error.fault == "broken"
        if suspect and not error.healed:
            raise error.explained
        answers: list[Answer] = []
        for item in items:
            try:
                answers += yield from self._asked([item], served, deadline, suspect=suspect)
            except ServerError as fault:
                if deadline.left_s == 0:
                    raise
                answers.append(Failure(item.index, item.name, str(fault), "server"))
        if all(isinstance(answer, Failure) and answer.fault == "server" for answer in answers):
            raise error.explained
        return answers

    def _described(self, deadline: Deadline) -> Flow[Served]:
        model = self.model or ENSEMBLE
        try:
            metadata, transport = yield from self.attempts.answered(
                lambda transport: transport.metadata(model, deadline.left_s), deadline
            )
        except UnansweredError as error:
            yield from self._explain(error, model, deadline)
        outputs, inputs = _tensors_of(metadata, transport)
        try:
            # Of the same server: others may be about to change.
            config = yield from self.attempts.outcome(transport.config(model, deadline.left_s), transport, deadline)
        except CallError:
            # A server that faces others may keep its configs to itself; names are all that is lost.
            config = {}
        if self.model is None:
            try:
                pixels = yield from self.attempts.outcome(
                    transport.metadata(ENSEMBLE_PIXELS, deadline.left_s), transport, deadline
                )
                inputs = pixels["inputs"]
            except (CallError, KeyError, TypeError):
                inputs = []
        try:
            return served_from_description(config, outputs, inputs, encoded=self.model is None)
        except (KeyError, ValueError) as error:
            raise ServerError(f"the model {model!r} at {transport.address} is none of Plurum's") from error

    def _explain(self, error: UnansweredError, model: str, deadline: Deadline) -> Flow[NoReturn]:
        place = error.transport.address
        if error.fault in {"away", "lost", "denied"}:
            raise error.explained from error
        if error.fault != "missing":
            raise ServerError(f"the server at {place} does not describe {model!r}: {error.reason}") from error
        try:
            names = yield from self.attempts.outcome(error.transport.models(deadline.left_s), error.transport, deadline)
            others = ", ".join(names) or "no model at all"
        except (CallError, ServerError, KeyError, TypeError):
            others = "what it keeps to itself"
        raise ServerError(
            f"the server at {place} has no model {model!r}, but {others}; "
            "serve an exported ensemble with: plurum serve REPO"
        ) from error


def _tensors_of(metadata: Any, transport: Transport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        return metadata["outputs"], metadata.get("inputs", [])
    except (KeyError, TypeError) as error:
        raise ServerError(f"what answers at {transport.address} is no Triton") from error
