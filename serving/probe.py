"""A real question: Triton says ready while a model's process is dead, so only an answer counts.

Asked over HTTP: a gRPC request that is given up in mid-flight can crash Triton 2.51, an HTTP one can't.
"""

from __future__ import annotations

import http.client
import io
import json
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from plurum.errors import ServerError
from plurum.spec import IMAGE, INPUT_PIXELS, Ensemble

__all__ = ["PROBE_ID", "NoAnswerError", "Probe"]

# The voter leaves requests of this name out of its metrics.
PROBE_ID = "plurum-probe"
_ENCODED, _PIXELS = ("ensemble",), ("ensemble_pixels", "ensemble_fused")


class NoAnswerError(ServerError):
    """A question was not answered.

    Attributes:
        kind: `late` where nothing came in time, `away` where nobody listens or the connection broke, `busy` where a
            queue is full, `error` where the answer was an error.
    """

    def __init__(self, message: str, kind: Literal["late", "away", "busy", "error"]) -> None:
        super().__init__(message)
        self.kind = kind


class Probe:
    """Asks the models of a server that take images about a grey one.

    Args:
        url: Of the HTTP endpoint, with scheme.
        ensemble: States the size of the image.
        models: Names of models in the repository.

    Attributes:
        chains: Those of them that can be asked.
    """

    def __init__(self, url: str, ensemble: Ensemble, models: list[str]) -> None:
        self._address = urlsplit(url).netloc
        self.chains = [name for name in (*_ENCODED, *_PIXELS) if name in models]
        pixels = np.full((ensemble.image.height, ensemble.image.width, 3), 128, np.uint8)
        self._pixels = _body(INPUT_PIXELS, [1, *pixels.shape], "UINT8", pixels.tobytes())
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        png = file.getvalue()
        # BYTES elements carry their length in front, little-endian.
        self._encoded = _body(IMAGE, [1, 1], "BYTES", len(png).to_bytes(4, "little") + png)

    def ask(self, chain: str, timeout_s: float) -> None:
        """Ask one of `chains`.

        Raises:
            NoAnswerError: there was no answer within `timeout_s`, or it was an error.
        """
        header, data = self._encoded if chain in _ENCODED else self._pixels
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            # An idle connection would keep a Triton that is told to end from ending.
            headers = {"Inference-Header-Content-Length": str(len(header)), "Connection": "close"}
            connection.request("POST", f"/v2/models/{chain}/infer", header + data, headers)
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError as error:
            raise NoAnswerError(f"{chain} did not answer within {timeout_s:.1f} s", "late") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{chain} can't be asked: {error!r}", "away") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            busy = answer.status == http.client.SERVICE_UNAVAILABLE
            raise NoAnswerError(f"{chain} answered: {_reason(text)}", "busy" if busy else "error")


def _body(name: str, shape: list[int], datatype: str, data: bytes) -> tuple[bytes, bytes]:
    """Return a request of KServe's v2 protocol with its binary extension: the JSON header, and the tensor."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    header = {"id": PROBE_ID, "inputs": [tensor], "outputs": [{"name": "REVIEW"}]}
    return json.dumps(header).encode(), data


def _reason(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace")[:200] or "nothing"
