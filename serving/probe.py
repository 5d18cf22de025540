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
import numpy.typing as npt
from PIL import Image

from plurum.conventions import PROBE_ID
from plurum.errors import ServerError
from plurum.spec import IMAGE, INPUT_PIXELS, Ensemble

__all__ = ["NoAnswerError", "Probe", "reason_of"]

_CHAINS = ("ensemble", "ensemble_pixels", "ensemble_fused")


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
    """Asks the models of a server that take images, about a grey one unless told otherwise.

    Args:
        url: Of the HTTP endpoint, with scheme.
        ensemble: States the size of the image.
        models: Names of models in the repository, those of a release with its tag at the end.

    Attributes:
        chains: Those of them that can be asked.
    """

    def __init__(self, url: str, ensemble: Ensemble, models: list[str]) -> None:
        self._address = urlsplit(url).netloc
        self.chains = [name for name in models if name.partition("-")[0] in _CHAINS]
        grey = np.full((1, ensemble.image.height, ensemble.image.width, 3), 128, np.uint8)
        self._questions = {name: _question(name, grey) for name in self.chains}

    def ask(self, chain: str, timeout_s: float) -> None:
        """Ask one of `chains`.

        Raises:
            NoAnswerError: there was no answer within `timeout_s`, or it was an error.
        """
        self._answer(chain, self._questions[chain], timeout_s)

    def probabilities(self, chain: str, pixels: npt.NDArray[np.uint8], timeout_s: float) -> npt.NDArray[np.float64]:
        """Return what one of `chains` says of images, `[images, classes]`, one question each.

        Args:
            chain: Its name.
            pixels: uint8 `[images, height, width, 3]`.
            timeout_s: For each question.

        Raises:
            NoAnswerError: there was no answer, or it was an error.
        """
        answers = []
        for image in pixels:
            outputs = json.loads(self._answer(chain, _question(chain, image[None]), timeout_s))["outputs"]
            answers += [output["data"] for output in outputs if output["name"] == "PROBABILITIES"]
        return np.array(answers, dtype=np.float64)

    def _answer(self, chain: str, question: tuple[bytes, bytes], timeout_s: float) -> bytes:
        header, data = question
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
            raise NoAnswerError(f"{chain} answered: {reason_of(text)}", "busy" if busy else "error")
        return text


def _question(chain: str, pixels: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Return a request of KServe's v2 protocol with its binary extension: the JSON header, and the tensor.

    All outputs are asked for: without LABEL, which comes from a step of its own, `ensemble_fused` answers an error.
    """
    if chain.partition("-")[0] == "ensemble":
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG")
        png = file.getvalue()
        # BYTES elements carry their length in front, little-endian.
        name, shape, datatype, data = IMAGE, [1, 1], "BYTES", len(png).to_bytes(4, "little") + png
    else:
        name, shape, datatype, data = INPUT_PIXELS, list(pixels.shape), "UINT8", pixels.tobytes()
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    header = {"id": PROBE_ID, "inputs": [tensor]}
    return json.dumps(header).encode(), data


def reason_of(text: bytes) -> str:
    """Return what Triton says in the body of an answer that is an error."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace")[:200] or "nothing"
