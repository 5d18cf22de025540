"""Triton's preprocess model: decode images, and resize them to the members' input.

Export copies it with the package `images` and `ensemble.json` into `preprocess/1`. It requires NumPy, Pillow and, for
DICOM, pydicom with the packages of its extra `pixeldata`; it does not require Plurum.

    IMAGE   BYTES [batch, 1]                       a JPEG, PNG, TIFF or DICOM file each
    PIXELS  UINT8 [batch, height, width, 3]        RGB

Ordinary images are decoded in this process. Requests that may take longer are deferred to a separate process that can
be killed. It decodes them one after the other, and their responses are sent when ready. Meanwhile this instance serves
other requests, so that large or malicious images block neither small images nor the supervisor's probes.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import images
    from plurum.images import decoder
else:
    import images
    from images import decoder

# Maximum pixel visits of a request that is decoded here: some 50 ms of a core. A JPEG of 4 megapixels takes 6 million.
_WORK_AT_ONCE = 8_000_000
# Maximum pixel visits (about half a second) and bytes of all deferred requests.
_WORK_WAITING, _BYTES_WAITING = 64_000_000, 64 << 20
# The structure of larger files is not read here.
_BYTES_LOOKED_AT = 16 << 20


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the image rule from the `ensemble.json` beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        image = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))["image"]
        self.rule = images.resizing_from_spec(image)
        self.decoding = images.decoding_from_spec(image)
        self.deferred = _DeferredRequests(decoder.Decoder(self.rule, **self.decoding))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response to each request, or None if it is sent later; a broken image fails only its own request."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Respond to deferred requests, then stop."""
        self.deferred.close()

    def _respond(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        structures: list[images.Structure | None] = []
        work = 0
        for index, data in enumerate(encoded):
            try:
                structure = images.structure_of(data) if len(data) <= _BYTES_LOOKED_AT else None
            except images.UnreadableImageError as error:
                return _refusal(index, len(encoded), error)
            structures.append(structure)
            work += structure.work if structure else len(data)
        # Only the decoders of some DICOM files may crash.
        apart = any(structure is None or structure.apart for structure in structures)
        if apart or work > _WORK_AT_ONCE:
            return self.deferred.put(request, encoded, work)
        pixels = []
        for index, (data, structure) in enumerate(zip(encoded, structures, strict=True)):
            try:
                image = images.open_image(data, structure, **self.decoding)
                pixels.append(images.pixels_from_image(image, **self.rule))
            except images.UnreadableImageError as error:
                return _refusal(index, len(encoded), error)
        return _response(pixels)


class _Request(NamedTuple):
    encoded: Sequence[bytes]
    sender: Any
    work: int
    size_bytes: int


class _DeferredRequests:
    """Requests that wait for the decoding process, and the thread that passes them to it."""

    def __init__(self, process: decoder.Decoder) -> None:
        self._decoder = process
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._work = self._bytes = 0
        # The decoding process exits with this thread, and the thread with Triton's process.
        self._thread = threading.Thread(target=self._run, name="large images", daemon=True)
        self._thread.start()

    def put(self, request: Any, encoded: Sequence[bytes], work: int) -> Any:
        """Defer a request and return None, or return an error if too much is waiting; one request may always wait."""
        size_bytes = sum(map(len, encoded))
        with self._lock:
            if self._work and (self._work + work > _WORK_WAITING or self._bytes + size_bytes > _BYTES_WAITING):
                reason = "IMAGE: other large images are being decoded. Send this one again later."
                return _error(reason, pb_utils.TritonError.UNAVAILABLE)
            self._work += work
            self._bytes += size_bytes
        self._waiting.put(_Request(list(encoded), request.get_response_sender(), work, size_bytes))
        return None

    def close(self) -> None:
        """Respond to waiting requests, then stop the process."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            with self._lock:
                self._work -= request.work
                self._bytes -= request.size_bytes
            try:
                response = self._decode(request)
            except Exception as error:
                # Without a response the client would wait for ever.
                response = _error(f"IMAGE: {error}", pb_utils.TritonError.INTERNAL)
            request.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        self._decoder.close()

    def _decode(self, request: _Request) -> Any:
        pixels, begin = [], time.monotonic()
        for index, data in enumerate(request.encoded):
            if request.sender.is_cancelled():
                return _error("IMAGE: the request was cancelled", pb_utils.TritonError.CANCELLED)
            try:
                pixels.append(self._decoder.pixels(data, max(1.0, decoder.WALL_S - (time.monotonic() - begin))))
            except images.UnreadableImageError as error:
                return _refusal(index, len(request.encoded), error)
        return _response(pixels)


def _response(pixels: Sequence[Any]) -> Any:
    # Nearly all requests hold one image, which becomes a batch without a copy.
    batch = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
    return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", batch)])


def _refusal(index: int, count: int, error: Exception) -> Any:
    place = f"IMAGE[{index}] of {count}: " if count > 1 else "IMAGE: "
    return _error(place + str(error), pb_utils.TritonError.INVALID_ARG)


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))
