"""Client of a served ensemble for threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from plurum.client.connection.base_client import CLOSE_S, BaseClient, raise_first
from plurum.client.connection.calls import Deadline, run_flow
from plurum.client.connection.payload import AnyImage, BatchSize, PreparedImage
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.client.connection.requests import Patients, Requester
from plurum.errors import ServerError

__all__ = ["EnsembleClient"]

# Results are returned in order: while the first is late, at most this multiple of `concurrency` is kept behind it.
_AHEAD = 4


class EnsembleClient(BaseClient):
    """Client of a served ensemble; use it with `with`, or close it. It may be used from several threads.

    The client connects at the first request, which fails at once if no server responds. Later requests are retried with
    growing pauses, within `timeout_s`, while the server is unreachable, restarting, full or failing. A refused image is
    not retried.

    Example:
        >>> with EnsembleClient("127.0.0.1:8001") as client:
        ...     for prediction in client.predict(["scan.png", pixels]):
        ...         print(prediction.label, prediction.confidence, prediction.review)

    Args:
        url: Address of a server: `host:port`, `http://host:port`, `grpc://host:port`, `https://…` or `grpcs://…`. None
            takes this machine and the protocol's port (gRPC 8001, HTTP 8000). Several servers get requests in turn;
            servers that don't respond are skipped until they do.
        protocol: `grpc` or `http`; None takes the protocol from the URL, else gRPC.
        model: Name of the model, such as `ensemble_fused`; None chooses `ensemble`, or `ensemble_pixels` for arrays of
            exactly its size.
        timeout_s: Time limit of one request with its retries, seconds. The limit is not sent to gRPC servers, because
            Triton can crash when a call is cancelled.
        concurrency: Maximum number of concurrent requests, so that the server never waits for the client; None is 6.
        api_key: Key sent as `Authorization: Bearer`; None reads the environment variable PLURUM_API_KEY.
        tls: Certificates for `https://` and `grpcs://`.
        full: If True, a server with a cascade runs all members for each image.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument is invalid.
    """

    _default_concurrency = 6

    def _set_up(self, concurrency: int) -> None:
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="plurum-client")

    def __enter__(self) -> EnsembleClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, after waiting a few seconds for requests in progress."""
        self._requester.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        for transport in self._requester.transports:
            transport.close(CLOSE_S)

    @property
    def served(self) -> Served:
        """Description of the served ensemble, requested once.

        Raises:
            ServerError: no server responds, or it serves no ensemble.
        """
        return run_flow(self._requester.served(Deadline.after(self._requester.timeout_s)))

    def predict(
        self, images: Iterable[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> list[Prediction]:
        """Return one prediction per image, in order.

        Args:
            images: Paths, bytes of JPEG, PNG, TIFF or DICOM, Pillow images, or uint8 arrays `[height, width, 3]` (RGB)
                or `[height, width]` (grey), in any mixture.
            patients: Patient of each image, None if unknown. A server that draws audits then draws patients instead of
                images; servers that draw none don't get the names.
            batch_size: Maximum number of images per request, within the server's own limit. None adapts it so that a
                request takes about half a second: 8 images at first, at most 32.

        Raises:
            ImageError: an image failed; the message names the first one and the reason. `stream` returns the others.
            ServerError: no server responds, the server fails, or it serves no ensemble.
            SettingsError: the batch size is below 1, or there is not one patient per image.
        """
        return raise_first(list(self.stream(images, patients=patients, batch_size=batch_size)))

    def stream(
        self, images: Iterable[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """Yield one `Prediction` or `Failure` per image, in order, while later images are being classified.

        `images` is read a few requests ahead, so it may be endless. A failed image yields a `Failure`, and does not
        affect the others.

        Args:
            images: Images, as in `predict`.
            patients: Patient of each image, as in `predict`; read in step with `images`.
            batch_size: Maximum number of images per request, as in `predict`.

        Raises:
            ServerError: no server responds, the server fails, or it serves no ensemble.
            SettingsError: the batch size is below 1, or there is not one patient per image.
        """
        requester = self._requester
        # The time to describe the ensemble counts towards the first request's limit.
        deadline = Deadline.after(requester.timeout_s)
        served = run_flow(requester.served(deadline))
        size = BatchSize(batch_size, served.max_batch_size)
        pending: deque[Future[list[Answer]]] = deque()
        try:
            for index, batch in enumerate(requester.batches(images, patients, served, size)):
                pending.append(self._submit(requester, batch, served, size, deadline if index == 0 else None))
                while pending and (pending[0].done() or not self._has_room(pending)):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _has_room(self, pending: deque[Future[list[Answer]]]) -> bool:
        """Wait until another request can start; return False if too many results wait behind the first."""
        while len(pending) < _AHEAD * self._concurrency:
            left = [future for future in pending if not future.done()]
            # Keep one more than `concurrency` pending, so that a free worker finds its next request.
            if len(left) <= self._concurrency:
                return True
            wait(left, return_when=FIRST_COMPLETED)
            if pending[0].done():
                return False
        return False

    def _submit(
        self,
        requester: Requester,
        batch: list[PreparedImage | Failure],
        served: Served,
        size: BatchSize,
        deadline: Deadline | None,
    ) -> Future[list[Answer]]:
        def answers() -> list[Answer]:
            return run_flow(requester.answers(batch, served, deadline or Deadline.after(requester.timeout_s), size))

        try:
            return self._workers.submit(answers)
        except RuntimeError as error:
            raise ServerError("the client is closed. Create another client.") from error
