"""Triton's preprocess model: encoded images in, the pixels that members see out.

Export copies it with `images.py`, what that needs, `decoder.py` and `ensemble.json` into `preprocess/1`; it needs NumPy
and Pillow, not Plurum.

    IMAGE   BYTES [batch, 1]                       an encoded JPEG, PNG or TIFF each
    PIXELS  UINT8 [batch, height, width, 3]        RGB

Ordinary images are decoded here. Requests that may take longer are put aside: a process that can be ended decodes
them, one after the other, and their responses are sent when they are ready. Meanwhile this instance serves the others,
so that large or malicious images keep out neither small ones nor the supervisor's probe.
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
    from plurum import decoder, images
else:
    import decoder
    import images

# Pixel visits of a request that is decoded here: some 50 ms of a core. A JPEG of 4 megapixels takes 6 million.
_WORK_AT_ONCE = 8_000_000
# Of all that waits for the process: its pixel visits, about half a second, and its bytes.
_WORK_WAITING, _BYTES_WAITING = 64_000_000, 64 << 20
# Larger files are not even looked through here.
_BYTES_LOOKED_AT = 16 << 20


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the image rule from the contract beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        image = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))["image"]
        self.rule = {key: image[key] for key in ("height", "width", "colour", "resize")}
        self.aside = _Aside(self.rule)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own: a broken image fails its request, not its neighbours'.

        None stands for a response that is sent later.
        """
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Answer what was put aside, then end."""
        self.aside.close()

    def _answer(self, request: Any) -> Any:
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
        if None in structures or work > _WORK_AT_ONCE:
            return self.aside.put(request, encoded, work)
        pixels = []
        for index, (data, structure) in enumerate(zip(encoded, structures, strict=True)):
            try:
                pixels.append(images.pixels_from_image(images.open_image(data, structure), **self.rule))
            except images.UnreadableImageError as error:
                return _refusal(index, len(encoded), error)
        return _response(pixels)


class _Request(NamedTuple):
    encoded: Sequence[bytes]
    sender: Any
    work: int
    size_bytes: int


class _Aside:
    """Requests that wait for the decoding process, and the thread that hands them to it."""

    def __init__(self, rule: dict[str, Any]) -> None:
        self._decoder = decoder.Decoder(rule)
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._work = self._bytes = 0
        # The decoding process ends with this thread, and the thread with Triton's process.
        self._thread = threading.Thread(target=self._run, name="large images", daemon=True)
        self._thread.start()

    def put(self, request: Any, encoded: Sequence[bytes], work: int) -> Any:
        """Take a request over and return None, or the refusal where too much waits already; one may always wait."""
        size_bytes = sum(map(len, encoded))
        with self._lock:
            if self._work and (self._work + work > _WORK_WAITING or self._bytes + size_bytes > _BYTES_WAITING):
                reason = "IMAGE: other large images are being decoded: send this one again later"
                return _error(reason, pb_utils.TritonError.UNAVAILABLE)
            self._work += work
            self._bytes += size_bytes
        self._waiting.put(_Request(list(encoded), request.get_response_sender(), work, size_bytes))
        return None

    def close(self) -> None:
        """Answer what waits, then end the process."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            with self._lock:
                self._work -= request.work
                self._bytes -= request.size_bytes
            try:
                response = self._decoded(request)
            except Exception as error:
                # Without a response the client would wait for ever.
                response = _error(f"IMAGE: {error}", pb_utils.TritonError.INTERNAL)
            request.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        self._decoder.close()

    def _decoded(self, request: _Request) -> Any:
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
    # Nearly all requests hold one image, which need not be copied to be a batch.
    batch = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
    return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", batch)])


def _refusal(index: int, count: int, error: Exception) -> Any:
    place = f"IMAGE[{index}] of {count}: " if count > 1 else "IMAGE: "
    return _error(place + str(error), pb_utils.TritonError.INVALID_ARG)


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))
