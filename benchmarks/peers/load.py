"""The load generator: a closed loop of clients against any peer or Plurum, in a process of its own.

    python -m plurum.benchmarks.peers.load < task.json

It reads a task from standard input and writes the outcome to standard output, both as JSON.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from tritonclient.grpc import InferResult
from tritonclient.grpc import service_pb2 as pb

from plurum.benchmarks.tools.load import Request, requests_of, responses, time_closed_loop
from plurum.benchmarks.tools.wire import post
from plurum.errors import PlurumError, ServerError
from plurum.spec import ImageSpec, Metadata

__all__ = ["Endpoint", "LoadTask", "Turn", "predictions", "run_elsewhere", "run_load"]

_EXTRA_S = 240.0
Prediction = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that takes an image, and the form in which it takes it.

    Attributes:
        kind: `json` receives the JPEG, `base64` the JPEG in JSON; `kserve` and `grpc` are Triton's HTTP and gRPC, which
            receive the JPEG as BYTES; `grpc-pixels` receives pixels, which the client decodes.
        path: Path of the URL; Triton's model.
    """

    kind: Literal["json", "base64", "kserve", "grpc", "grpc-pixels"]
    path: str


@dataclass(frozen=True)
class LoadTask:
    """One turn of the load generator.

    Attributes:
        endpoint: Endpoint that receives the images.
        address: HOST:PORT.
        images: Files, sent in turn.
        classes: Class names in the order of probabilities, for endpoints that respond without names.
        image: Image specification that `grpc-pixels` decodes to.
        clients: Requests in flight; 0 sends every image once and keeps the predictions.
        seconds: Time after which no request starts; requests in flight are waited for and count.
    """

    endpoint: Endpoint
    address: str
    images: tuple[str, ...]
    classes: tuple[str, ...]
    image: ImageSpec
    clients: int
    seconds: float


_TASKS = TypeAdapter(LoadTask)


class Turn(Metadata):
    """Figures of one turn.

    Attributes:
        images_per_s: Responses per second.
        latencies_ms: Latency of every request as its client sees it, ms.
    """

    images_per_s: Annotated[float, Field(gt=0)]
    latencies_ms: tuple[float, ...]


def run_load(task: LoadTask) -> Turn:
    """Run a closed loop as the task says; the first request of each client does not count.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """
    per_s, latencies_s = time_closed_loop(_url(task), _requests(task), task.clients, task.seconds)
    return Turn(images_per_s=per_s, latencies_ms=tuple(1000 * one for one in latencies_s))


def predictions(task: LoadTask) -> list[Prediction]:
    """Return the prediction for every image, each `{"label": NAME, "probabilities": {NAME: PROBABILITY}}`.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """
    received = responses(_url(task), _requests(task))
    if task.endpoint.kind in {"json", "base64"}:
        return [json.loads(one) for one in received]
    return [_triton_prediction(one, task) for one in received]


def run_elsewhere(task: LoadTask) -> Any:
    """Run a task in a process of its own; return a list as `predictions` does, or a `Turn` as a dictionary.

    Raises:
        ServerError: The task failed, or did not end in time.
    """
    text = _TASKS.dump_json(task).decode()
    longest = task.seconds + _EXTRA_S
    command = [sys.executable, "-m", "plurum.benchmarks.peers.load"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=longest)
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"a turn of {task.seconds:g} s did not end within {longest:g} s") from error
    if done.returncode:
        raise ServerError(done.stderr.strip().rpartition("\n")[2] or "the load generator failed without a message")
    return json.loads(done.stdout)


def _url(task: LoadTask) -> str:
    return task.address if task.endpoint.kind.startswith("grpc") else f"http://{task.address}"


def _requests(task: LoadTask) -> Sequence[Request]:
    images, kind, path = [Path(one).read_bytes() for one in task.images], task.endpoint.kind, task.endpoint.path
    if kind == "json":
        return [post(path, image, content_type="image/jpeg") for image in images]
    if kind == "base64":
        bodies = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]
        return [post(path, body, content_type="application/json") for body in bodies]
    if kind == "grpc-pixels":
        # Decoded when sent: the client's decoding counts as latency.
        return [partial(_decoded_request, image, task) for image in images]
    return requests_of(images, task.image, path, "HTTP" if kind == "kserve" else "gRPC")


def _decoded_request(image: bytes, task: LoadTask) -> bytes:
    (request,) = requests_of([image], task.image, task.endpoint.path)
    return request


def _triton_prediction(response: bytes, task: LoadTask) -> Prediction:
    if task.endpoint.kind == "kserve":
        from tritonclient.http import InferResult as HttpResult

        # The JSON of an HTTP response ends where its binary outputs begin.
        length = json.JSONDecoder().raw_decode(response.decode("latin-1"))[1]
        result = HttpResult.from_response_body(response, header_length=length)
    else:
        result = InferResult(pb.ModelInferResponse.FromString(response))
    probabilities = result.as_numpy("PROBABILITIES")[0].tolist()
    return {
        "label": result.as_numpy("LABEL").item().decode(),
        "probabilities": dict(zip(task.classes, probabilities, strict=True)),
    }


def _main() -> None:
    task = _TASKS.validate_json(sys.stdin.read())
    try:
        json.dump(run_load(task).model_dump() if task.clients else predictions(task), sys.stdout)
    except PlurumError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
