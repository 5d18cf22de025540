"""Ask a served ensemble about images, from threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from plurum.client.asking import Asker, Urls, asker_from, raise_first
from plurum.client.calls import Deadline, carried_out
from plurum.client.payload import AnyImage, BatchSize, Item
from plurum.client.predictions import Answer, Failure, Prediction, Served
from plurum.client.transport import Tls, WireProtocol
from plurum.errors import ServerError, SettingsError

__all__ = ["CLOSE_S", "EnsembleClient"]

# Calls that nobody waits for any more may still hold a place on the server; seconds that `close` leaves them.
CLOSE_S = 5.0
# Answers come in order: while the first is late, as many times the requests under way are asked after it, and kept.
_AHEAD = 4


class EnsembleClient:
    """A connection to a served ensemble, for `with` or to be closed; may be used from several threads.

    Nothing is asked before the first question. That fails at once when no server answers; after it, a server that is
    away, restarts, is full or fails is asked again, with growing pauses, as long as `timeout_s` allows. An image that
    is refused is not.

    Example:
        >>> with EnsembleClient("127.0.0.1:8001") as client:
        ...     for prediction in client.predict(["scan.png", pixels]):
        ...         print(prediction.label, prediction.confidence, prediction.review)

    Args:
        url: `host:port`, `http://host:port`, `grpc://host:port`, `https://…` or `grpcs://…`; by default this machine
            and the protocol's port (gRPC 8001, HTTP 8000). Several are asked in turn; those that do not answer are
            left out until they do.
        protocol: `grpc` or `http`; by default what the URL says, else gRPC.
        model: Which to ask, such as `ensemble_fused`; by default `ensemble`, and `ensemble_pixels` about arrays of
            exactly its size.
        timeout_s: How long one request may take, from when it is begun, with all that is tried for it. Kept here: a
            gRPC server is never told, since Triton can crash when a call is cancelled.
        concurrency: How many requests are under way at once, so that the server never waits for the client.
        api_key: Sent as `Authorization: Bearer`; by default the environment's PLURUM_API_KEY, if there is one.
        tls: Certificates, for `https://` and `grpcs://`.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument that can't be used.
    """

    def __init__(
        self,
        url: Urls = None,
        protocol: WireProtocol | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 60.0,
        concurrency: int = 6,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        if concurrency < 1:
            raise SettingsError(f"{concurrency} requests at once ask nothing; give 1 or more")
        self._asker = asker_from(url, protocol, model, timeout_s, api_key, tls)
        self._concurrency = concurrency
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="plurum-client")

    def __enter__(self) -> EnsembleClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections, after waiting a few seconds for requests under way."""
        self._asker.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        for transport in self._asker.transports:
            transport.close(CLOSE_S)

    @property
    def served(self) -> Served:
        """What the server says of its ensemble; asked once.

        Raises:
            ServerError: no server answers, or it serves no ensemble.
        """
        return carried_out(self._asker.served(Deadline.after(self._asker.timeout_s)))

    def predict(self, images: Iterable[AnyImage], *, batch_size: int | None = None) -> list[Prediction]:
        """Return one prediction per image, in order.

        Args:
            images: Paths, encoded JPEG, PNG or TIFF bytes, Pillow images, or uint8 arrays `[height, width, 3]` (RGB)
                or `[height, width]` (grey), in any mixture.
            batch_size: Images in one request, at most; the server's own limit holds too. By default as many as are
                answered within half a second: 8 at first, 32 at most.

        Raises:
            ImageError: an image got no answer; the message names the first and says why. `stream` gives the others.
            ServerError: no server answers, it fails, or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        return raise_first(list(self.stream(images, batch_size=batch_size)))

    def stream(self, images: Iterable[AnyImage], *, batch_size: int | None = None) -> Iterator[Answer]:
        """Yield one `Prediction` or `Failure` per image, in order, while later images are on their way.

        `images` is read some requests ahead, so it may be endless. An image that can't be answered yields a
        `Failure` and spoils no other.

        Args:
            images: As `predict` takes them.
            batch_size: Likewise.

        Raises:
            ServerError: no server answers (any more), it fails, or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        asker = self._asker
        # The first request pays for asking what is served.
        deadline = Deadline.after(asker.timeout_s)
        served = carried_out(asker.served(deadline))
        size = BatchSize(batch_size, served.max_batch_size)
        pending: deque[Future[list[Answer]]] = deque()
        try:
            for index, batch in enumerate(asker.batches(images, served, size)):
                pending.append(self._submit(asker, batch, served, size, deadline if index == 0 else None))
                while pending and (pending[0].done() or not self._has_room(pending)):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _has_room(self, pending: deque[Future[list[Answer]]]) -> bool:
        """Wait until there is work for another request; not, where the first of these has kept too many waiting."""
        while len(pending) < _AHEAD * self._concurrency:
            left = [future for future in pending if not future.done()]
            # One more than are under way, so that a worker that ends finds its next.
            if len(left) <= self._concurrency:
                return True
            wait(left, return_when=FIRST_COMPLETED)
            if pending[0].done():
                return False
        return False

    def _submit(
        self, asker: Asker, batch: list[Item | Failure], served: Served, size: BatchSize, deadline: Deadline | None
    ) -> Future[list[Answer]]:
        def answers() -> list[Answer]:
            return carried_out(asker.answers(batch, served, deadline or Deadline.after(asker.timeout_s), size))

        try:
            return self._workers.submit(answers)
        except RuntimeError as error:
            raise ServerError("the client is closed; make another") from error
