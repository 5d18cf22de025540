"""Requests about an ensemble, and what follows a failure; the same for threads and asyncio.

A method that returns a `Flow` is run by `plurum.client.connection.calls`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from plurum.client.connection.calls import Deadline, Flow
from plurum.client.connection.description import served_from_description
from plurum.client.connection.payload import (
    ENSEMBLE,
    ENSEMBLE_PIXELS,
    AnyImage,
    BatchSize,
    PreparedImage,
    batches,
    image_name,
    prepare_image,
    tensor_from_images,
)
from plurum.client.connection.predictions import Answer, Failure, Served
from plurum.client.connection.retries import Request, Retries, UnansweredError
from plurum.client.connection.transport import CallError, Transport
from plurum.conventions import FULL
from plurum.errors import ImageError, ServerError, SettingsError
from plurum.predictions.outputs import AUDIT
from plurum.predictions.prediction import predictions_from_tensors
from plurum.predictions.wire import parameters_from_patients
from plurum.spec import release_from_version

__all__ = ["Patients", "Requester", "pairs"]

Patients = Iterable[str | None]
_MISSING: Any = object()
_MEND = "Give None for an unknown patient."
# Time limit of a request for the description, which needs no computing, seconds.
_DESCRIBE_S = 10.0


@dataclass
class Requester:
    """Sends requests about an ensemble.

    Attributes:
        retries: Sends the requests to the servers.
        model: Name of the model; None chooses `ensemble`, or `ensemble_pixels` for arrays of exactly its size.
        timeout_s: Time limit of one request with its retries, seconds.
        known: Description of the served ensemble; None until the server has returned it.
        full: If True, a server with a cascade runs all members for each image.
    """

    retries: Retries
    model: str | None
    timeout_s: float
    known: Served | None = None
    full: bool = False

    def close(self) -> None:
        """Stop all retries."""
        self.retries.closed = True

    @property
    def transports(self) -> list[Transport]:
        """Connections to all servers."""
        return self.retries.balance.transports

    def served(self, deadline: Deadline) -> Flow[Served]:
        """Return the description of the served ensemble, requested once.

        Raises:
            ServerError: no server responds, or it serves no ensemble.
        """
        if self.known is None:
            self.known = yield from self._describe(deadline.at_most(_DESCRIBE_S))
        return self.known

    def batches(
        self, images: Iterable[AnyImage], patients: Patients | None, served: Served, size: BatchSize
    ) -> Iterator[list[PreparedImage | Failure]]:
        """Yield the images of each request; reads `images` and `patients` one batch ahead.

        Raises:
            SettingsError: there are more images or more patients.
        """
        return batches(_prepare(images, patients, served), size)

    def answers(
        self, batch: list[PreparedImage | Failure], served: Served, deadline: Deadline, size: BatchSize
    ) -> Flow[list[Answer]]:
        """Classify a batch, and adapt `size` to the response time; failures keep their position.

        Raises:
            ServerError: no server responds in time, or all fail.
        """
        images = [one for one in batch if isinstance(one, PreparedImage)]
        started_s = time.monotonic()
        answers = iter((yield from self._classify(images, served, deadline)))
        size.note(len(images), time.monotonic() - started_s)
        return [entry if isinstance(entry, Failure) else next(answers) for entry in batch]

    def _classify(
        self, images: list[PreparedImage], served: Served, deadline: Deadline, *, suspect: bool = False
    ) -> Flow[list[Answer]]:
        """Classify images for one model; if the server refuses them together, send each alone.

        Args:
            images: Images to classify.
            served: Description of the served ensemble.
            deadline: Deadline of all attempts.
            suspect: True if a server failed on these images; then they are sent once, alone.
        """
        if not images:
            return []
        model, name, tensor = tensor_from_images(images)
        # Names of patients only go where audits are drawn by them.
        parameters: dict[str, str | bool] = {FULL: True} if self.full else {}
        if served.has_audit:
            parameters |= parameters_from_patients([one.patient for one in images])
        request = Request(self.model or model, name, tensor, parameters)
        try:
            if suspect:
                outputs = yield from self.retries.send_again(request, deadline, "broken")
            else:
                outputs = yield from self.retries.send(request, deadline, together=len(images) > 1)
        except UnansweredError as error:
            if error.fault == "refused" and len(images) == 1:
                return [Failure(images[0].index, images[0].name, error.reason)]
            if error.fault not in {"refused", "broken"} or len(images) == 1:
                raise error.explained from error
            return (yield from self._classify_alone(images, served, deadline, error))
        if (AUDIT in outputs.tensors) != served.has_audit:
            # Another release is served now. Describe it before further requests: only audits need patients.
            self.known = None
        release = release_from_version(outputs.version)
        names = served.classes, served.members
        return list(predictions_from_tensors(outputs.tensors, *names, len(images), release))

    def _classify_alone(
        self, images: list[PreparedImage], served: Served, deadline: Deadline, error: UnansweredError
    ) -> Flow[list[Answer]]:
        """Send each image alone, to find the one that made the request fail."""
        suspect = error.fault == "broken"
        if suspect and not error.healed:
            raise error.explained
        answers: list[Answer] = []
        for image in images:
            try:
                answers += yield from self._classify([image], served, deadline, suspect=suspect)
            except ServerError as fault:
                if deadline.left_s == 0:
                    raise
                answers.append(Failure(image.index, image.name, str(fault), "server"))
        if all(isinstance(answer, Failure) and answer.fault == "server" for answer in answers):
            raise error.explained
        return answers

    def _describe(self, deadline: Deadline) -> Flow[Served]:
        model = self.model or ENSEMBLE
        try:
            metadata, transport = yield from self.retries.first_response(
                lambda transport: transport.metadata(model, deadline.left_s), deadline
            )
        except UnansweredError as error:
            yield from self._explain(error, model, deadline)
        outputs, inputs = _tensors_of(metadata, transport)
        try:
            # From the same server: others may change to another release now.
            config = yield from self.retries.result(transport.config(model, deadline.left_s), transport, deadline)
        except CallError:
            # The server hides its config, which costs only names.
            config = {}
        if self.model is None:
            try:
                pixels = yield from self.retries.result(
                    transport.metadata(ENSEMBLE_PIXELS, deadline.left_s), transport, deadline
                )
                inputs = pixels["inputs"]
            except (CallError, KeyError, TypeError):
                inputs = []
        try:
            return served_from_description(config, outputs, inputs, encoded=self.model is None)
        except (KeyError, ValueError) as error:
            raise ServerError(f"the model {model!r} at {transport.address} was not exported by Plurum") from error

    def _explain(self, error: UnansweredError, model: str, deadline: Deadline) -> Flow[NoReturn]:
        address = error.transport.address
        if error.fault in {"away", "lost", "denied"}:
            raise error.explained from error
        if error.fault != "missing":
            raise ServerError(f"the server at {address} does not describe {model!r}: {error.reason}") from error
        try:
            names = yield from self.retries.result(error.transport.models(deadline.left_s), error.transport, deadline)
            available = ", ".join(names) or "none"
        except (CallError, ServerError, KeyError, TypeError):
            available = "not disclosed"
        raise ServerError(
            f"unknown model {model!r} at {address}; available: {available}. "
            "Serve an exported ensemble with: plurum serve REPO"
        ) from error


def _prepare(
    images: Iterable[AnyImage], patients: Patients | None, served: Served
) -> Iterator[PreparedImage | Failure]:
    for index, (image, patient) in enumerate(pairs(images, patients)):
        try:
            prepared = prepare_image(index, image, served.pixels_shape, encoded=served.takes_encoded)
            yield replace(prepared, patient=patient) if patient else prepared
        except ImageError as error:
            yield Failure(index, image_name(index, image), str(error))


def pairs(images: Iterable[AnyImage], patients: Patients | None) -> Iterator[tuple[AnyImage, str]]:
    """Yield each image with its patient, an empty text if unknown.

    Raises:
        SettingsError: there are more images or more patients, or a patient is not a text.
    """
    if patients is None:
        yield from ((image, "") for image in images)
        return
    given = iter(patients)
    for index, image in enumerate(images):
        patient = next(given, _MISSING)
        if patient is _MISSING:
            raise SettingsError(f"patients: expected one per image, got {index} for more images. {_MEND}")
        if not isinstance(patient, str | None):
            raise SettingsError(f"patients: expected texts or None, got a {type(patient).__name__}. {_MEND}")
        yield image, patient or ""
    if next(given, _MISSING) is not _MISSING:
        raise SettingsError(f"patients: expected one per image, got more than images. {_MEND}")


def _tensors_of(metadata: Any, transport: Transport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        return metadata["outputs"], metadata.get("inputs", [])
    except (KeyError, TypeError) as error:
        raise ServerError(f"{transport.address} is not a Triton server") from error
