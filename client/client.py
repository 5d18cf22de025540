"""Ask a served ensemble about images."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import Any, NoReturn

from plurum.client.payload import (
    ENSEMBLE,
    ENSEMBLE_PIXELS,
    AnyImage,
    Item,
    batches,
    item_from_image,
    name_of,
    tensor_from_items,
)
from plurum.client.predictions import Answer, Failure, Prediction, Served, predictions_from_tensors
from plurum.client.transport import RefusedError, WireProtocol, transport_from_url
from plurum.errors import ImageError, PlurumError, ServerError, SettingsError

__all__ = ["EnsembleClient"]


class EnsembleClient:
    """A connection to a served ensemble, for `with` or to be closed; may be used from several threads.

    Nothing is asked before the first question.

    Example:
        >>> with EnsembleClient("127.0.0.1:8001") as client:
        ...     for prediction in client.predict(["scan.png", pixels]):
        ...         print(prediction.label, prediction.confidence, prediction.review)

    Args:
        url: `host:port`, `http://host:port` or `grpc://host:port`; by default this machine and the protocol's port
            (gRPC 8001, HTTP 8000).
        protocol: `grpc` or `http`; by default what the URL says, else gRPC.
        timeout_s: How long one request may take.
        concurrency: How many requests are under way at once, so that the server never waits for the client.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument that can't be used.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: WireProtocol | None = None,
        *,
        timeout_s: float = 60.0,
        concurrency: int = 4,
    ) -> None:
        if not timeout_s > 0:
            raise SettingsError(f"a timeout of {timeout_s:g} s is none; give more than 0")
        if concurrency < 1:
            raise SettingsError(f"{concurrency} requests at once ask nothing; give 1 or more")
        self._transport = transport_from_url(url, protocol, timeout_s)
        self._concurrency = concurrency
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="plurum-client")

    def __enter__(self) -> EnsembleClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the requests under way and let go of the connection."""
        self._workers.shutdown(cancel_futures=True)
        self._transport.close()

    @cached_property
    def served(self) -> Served:
        """What the server says of its ensemble; asked once.

        Raises:
            ServerError: no server answers, or it serves no ensemble.
        """
        try:
            outputs = self._transport.metadata(ENSEMBLE)["outputs"]
        except RefusedError as error:
            self._explain(error)
        except (KeyError, TypeError) as error:
            raise ServerError(f"what answers at {self._transport.address} is no Triton") from error
        shapes = {output["name"]: [int(size) for size in output.get("shape", ())] for output in outputs}
        try:
            config = self._transport.config(ENSEMBLE)
        except RefusedError:
            # A server that faces others may keep its configs to itself; names are all that is lost.
            config = {}
        try:
            classes, members = _names(config, shapes)
        except (KeyError, ValueError) as error:
            raise ServerError(f"the model {ENSEMBLE!r} at {self._transport.address} is none of Plurum's") from error
        return Served(classes, members, int(config.get("max_batch_size", 1)), self._pixels_shape())

    def predict(self, images: Iterable[AnyImage], *, batch_size: int = 8) -> list[Prediction]:
        """Return one prediction per image, in order.

        Args:
            images: Paths, encoded JPEG, PNG or TIFF bytes, Pillow images, or uint8 arrays `[height, width, 3]` (RGB)
                or `[height, width]` (grey), in any mixture.
            batch_size: Images in one request, at most; the server's own limit holds too.

        Raises:
            ImageError: an image got no answer; the message names the first and says why. `stream` gives the others.
            ServerError: no server answers, or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        answers = list(self.stream(images, batch_size=batch_size))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise ImageError(f"{failures[0].name}: {failures[0].reason}{more}")
        return [answer for answer in answers if isinstance(answer, Prediction)]

    def stream(self, images: Iterable[AnyImage], *, batch_size: int = 8) -> Iterator[Answer]:
        """Yield one `Prediction` or `Failure` per image, in order, while later images are on their way.

        `images` is read a few requests ahead, so it may be endless. An image that can't be answered yields a
        `Failure` and spoils no other.

        Args:
            images: As `predict` takes them.
            batch_size: Likewise.

        Raises:
            ServerError: no server answers (any more), or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        if batch_size < 1:
            raise SettingsError(f"a batch of {batch_size} images is none; give 1 or more")
        size = min(batch_size, self.served.max_batch_size)
        pending: deque[Future[list[Answer]]] = deque()
        try:
            for batch in batches(self._entries(images), size):
                pending.append(self._workers.submit(self._answers, batch))
                # One more than are under way, so that a worker that ends finds its next.
                while pending and (len(pending) > self._concurrency or pending[0].done()):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _entries(self, images: Iterable[AnyImage]) -> Iterator[Item | Failure]:
        for index, image in enumerate(images):
            try:
                yield item_from_image(index, image, self.served.pixels_shape)
            except ImageError as error:
                yield Failure(index, name_of(index, image), str(error))

    def _answers(self, batch: list[Item | Failure]) -> list[Answer]:
        answers = iter(self._ask([entry for entry in batch if isinstance(entry, Item)]))
        return [entry if isinstance(entry, Failure) else next(answers) for entry in batch]

    def _ask(self, items: list[Item]) -> list[Answer]:
        """Return the answers to images of one model; when that refuses them together, ask about each alone."""
        if not items:
            return []
        model, name, tensor = tensor_from_items(items)
        try:
            tensors = self._transport.infer(model, name, tensor)
        except RefusedError as error:
            if len(items) > 1 and error.kind == "refused":
                return [answer for item in items for answer in self._ask([item])]
            return [Failure(item.index, item.name, error.reason) for item in items]
        return list(predictions_from_tensors(tensors, self.served, len(items)))

    def _pixels_shape(self) -> tuple[int, int, int] | None:
        try:
            (pixels,) = self._transport.metadata(ENSEMBLE_PIXELS)["inputs"]
            _, height, width, channels = map(int, pixels["shape"])
        except (RefusedError, ValueError):
            return None
        return height, width, channels

    def _explain(self, error: RefusedError) -> NoReturn:
        place = self._transport.address
        if error.kind != "missing":
            raise ServerError(f"the server at {place} does not describe {ENSEMBLE!r}: {error.reason}") from error
        try:
            others = ", ".join(self._transport.models()) or "no model at all"
        except (PlurumError, RefusedError):
            others = "what it keeps to itself"
        raise ServerError(
            f"the server at {place} has no model {ENSEMBLE!r}, but {others}; "
            "serve an exported ensemble with: plurum serve REPO"
        ) from error


def _names(config: dict[str, Any], shapes: dict[str, list[int]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of classes and members from the contract that the config carries, else their numbers."""
    try:
        contract = json.loads(config["parameters"]["contract"]["string_value"])
        return tuple(contract["classes"]), tuple(member["name"] for member in contract["members"])
    except (KeyError, TypeError, ValueError):
        members, classes = shapes["MEMBER_PROBABILITIES"][-2:]
        return tuple(map(str, range(classes))), tuple(map(str, range(members)))
