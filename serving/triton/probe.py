"""Check a server's health with real inference requests, because Triton reports ready after a model's process exited.

Probes use HTTP: a gRPC request that is cancelled in flight can crash Triton 2.51; an HTTP request can't.
"""

from __future__ import annotations

import http.client
import io
import json
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.conventions import FULL, PROBE_ID
from plurum.errors import ServerError
from plurum.predictions.wire import raw_from_bytes
from plurum.spec import IMAGE, INPUT_PIXELS, Ensemble

__all__ = ["Probe", "ProbeError", "reason_of"]

_CHAINS = ("ensemble", "ensemble_pixels", "ensemble_fused")


class ProbeError(ServerError):
    """A probe request failed.

    Attributes:
        kind: `late` if no response arrived in time, `away` if the connection was refused or lost, `busy` if a queue is
            full, `error` if the response is an error.
    """

    def __init__(self, message: str, kind: Literal["late", "away", "busy", "error"]) -> None:
        super().__init__(message)
        self.kind = kind


class Probe:
    """Sends inference requests to the models of a server that take images.

    Args:
        url: URL of the HTTP endpoint, with scheme.
        ensemble: Metadata of the ensemble, which states the image size.
        models: Names of the models in the repository; models of a release end with its tag.

    Attributes:
        chains: Names of the models that take images.
    """

    def __init__(self, url: str, ensemble: Ensemble, models: list[str]) -> None:
        self._address = urlsplit(url).netloc
        self.chains = [name for name in models if name.partition("-")[0] in _CHAINS]
        grey = np.full((1, ensemble.image.height, ensemble.image.width, 3), 128, np.uint8)
        # Through all stages of a cascade, so that no member fails unnoticed.
        self._full = ensemble.cascade is not None
        self._requests = {name: _encode_request(name, grey, full=self._full) for name in self.chains}

    def check(self, chain: str, timeout_s: float) -> None:
        """Send a grey image to one of `chains`.

        Raises:
            ProbeError: there was no response within `timeout_s`, or it was an error.
        """
        self._send(chain, self._requests[chain], timeout_s)

    def predict(self, chain: str, pixels: npt.NDArray[np.uint8], timeout_s: float) -> npt.NDArray[np.float64]:
        """Return the probabilities that one of `chains` predicts, `[images, classes]`; one request per image.

        All members of a cascade run.

        Args:
            chain: Name of the model.
            pixels: Images, uint8 `[images, height, width, 3]`.
            timeout_s: Time limit of each request, seconds.

        Raises:
            ProbeError: there was no response, or it was an error.
        """
        predictions = []
        for image in pixels:
            outputs = json.loads(self._send(chain, _encode_request(chain, image[None], full=self._full), timeout_s))[
                "outputs"
            ]
            predictions += [output["data"] for output in outputs if output["name"] == "PROBABILITIES"]
        return np.array(predictions, dtype=np.float64)

    def _send(self, chain: str, request: tuple[bytes, bytes], timeout_s: float) -> bytes:
        header, data = request
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            # An idle connection would delay Triton's shutdown.
            headers = {"Inference-Header-Content-Length": str(len(header)), "Connection": "close"}
            connection.request("POST", f"/v2/models/{chain}/infer", header + data, headers)
            response = connection.getresponse()
            text = response.read()
        except TimeoutError as error:
            raise ProbeError(f"{chain} did not respond within {timeout_s:.1f} s", "late") from error
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"{chain} can't be reached: {error!r}", "away") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            is_busy = response.status == http.client.SERVICE_UNAVAILABLE
            raise ProbeError(f"{chain} returned an error: {reason_of(text)}", "busy" if is_busy else "error")
        return text


def _encode_request(chain: str, pixels: npt.NDArray[np.uint8], *, full: bool) -> tuple[bytes, bytes]:
    """Return a request of KServe's v2 protocol with its binary extension: the JSON header, and the tensor.

    The request names no outputs and so gets all of them: without LABEL, which a separate step computes,
    `ensemble_fused` returns an error.
    """
    if chain.partition("-")[0] == "ensemble":
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG")
        name, shape, datatype, data = IMAGE, [1, 1], "BYTES", raw_from_bytes([file.getvalue()])
    else:
        name, shape, datatype, data = INPUT_PIXELS, list(pixels.shape), "UINT8", pixels.tobytes()
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    header = {"id": PROBE_ID, "inputs": [tensor]} | ({"parameters": {FULL: True}} if full else {})
    return json.dumps(header).encode(), data


def reason_of(text: bytes) -> str:
    """Return Triton's message from the body of an error response."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace")[:200] or "nothing"
