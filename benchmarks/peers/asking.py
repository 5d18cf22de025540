"""The load generator: clients that ask again as soon as they are answered, in a process of their own.

    python -m plurum.benchmarks.peers.asking < task.json

Standard input is a task, standard output what came of it, both as JSON. Every server is asked by the same threads
over connections that stay open, where the server lets them; an answer is read down to its label and probabilities.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plurum.benchmarks.tools.requests import decoded
from plurum.errors import ServerError
from plurum.spec import IMAGE, INPUT_PIXELS, ImageSpec

__all__ = ["Door", "Task", "Turn", "answers", "ask", "asked_elsewhere"]

_TIMEOUT_S, _EXTRA_S = 100.0, 240.0
_OUTPUTS = ("LABEL", "PROBABILITIES")


@dataclass(frozen=True)
class Door:
    """How a server is asked.

    Attributes:
        kind: `json` posts the JPEG, `base64` posts it in JSON; `kserve` and `grpc` send it to Triton as
            BYTES; `grpc-pixels` decodes it first.
        path: Of the URL; Triton's model.
    """

    kind: Literal["json", "base64", "kserve", "grpc", "grpc-pixels"]
    path: str


@dataclass(frozen=True)
class Task:
    """What a turn is to do.

    Attributes:
        door: How the server is asked.
        address: HOST:PORT.
        images: Files, sent in turn; each client begins at another.
        classes: Names, in the order of probabilities, for doors that answer without names.
        image: What `grpc-pixels` decodes to.
        clients: Requests in flight; 0 asks once about every image and keeps the answers.
        seconds: No request starts after it; those in flight are waited for and counted, and so is the time they take.
    """

    door: Door
    address: str
    images: tuple[str, ...]
    classes: tuple[str, ...]
    image: ImageSpec
    clients: int
    seconds: float


@dataclass(frozen=True)
class Turn:
    """What came of it.

    Attributes:
        images_per_s: Answered.
        latencies_ms: Of each request, as its client saw it.
    """

    images_per_s: float
    latencies_ms: tuple[float, ...]


Answer = dict[str, Any]
Question = Callable[[bytes], Answer]


def ask(task: Task) -> Turn:
    """Ask as the task says; two requests of each client come first and are not counted.

    Raises:
        OSError: there was no answer.
        http.client.HTTPException: what answered was none.
        RuntimeError: the server refused.
        InferenceServerException: Triton refused.
    """
    images = [Path(path).read_bytes() for path in task.images]
    barrier = threading.Barrier(task.clients)
    ends: list[float] = [0.0] * task.clients
    starts: list[float] = [0.0] * task.clients

    def client(number: int) -> list[float]:
        with _question(task) as question:
            try:
                for index in range(2):
                    question(images[(number + index) % len(images)])
            except BaseException:
                barrier.abort()
                raise
            barrier.wait()
            starts[number] = began = time.perf_counter()
            latencies, turn = [], number
            while (start := time.perf_counter()) < began + task.seconds:
                question(images[turn % len(images)])
                ends[number] = time.perf_counter()
                latencies.append(1000 * (ends[number] - start))
                turn += 1
            return latencies

    with ThreadPoolExecutor(task.clients) as pool:
        futures = [pool.submit(client, number) for number in range(task.clients)]
    # Who waits at the barrier for a client that failed is told of a broken barrier: the cause is what counts.
    faults = [error for future in futures if (error := future.exception()) is not None]
    for fault in sorted(faults, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise fault
    latencies = [latency for future in futures for latency in future.result()]
    return Turn(len(latencies) / (max(ends) - min(starts)), tuple(latencies))


def answers(task: Task) -> list[Answer]:
    """Return the answer to every image, each `{"label": NAME, "probabilities": {NAME: SHARE}}`; raises as `ask`."""
    with _question(task) as question:
        return [question(Path(path).read_bytes()) for path in task.images]


def asked_elsewhere(task: Task) -> Any:
    """Do a task in a process of its own: what `answers` returns, or a `Turn` as a dictionary.

    Raises:
        ServerError: it failed, and why.
    """
    given = asdict(task) | {"image": task.image.model_dump()}
    longest = task.seconds + _EXTRA_S
    try:
        done = subprocess.run(
            [sys.executable, "-m", "plurum.benchmarks.peers.asking"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=longest,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"no end of a turn of {task.seconds:g} s after {longest:g} s") from error
    if done.returncode:
        raise ServerError(done.stderr.strip().rpartition("\n")[2] or "the load generator failed without a word")
    return json.loads(done.stdout)


@contextmanager
def _question(task: Task) -> Iterator[Question]:
    """Give what asks over a connection of its own."""
    if task.door.kind.startswith("grpc"):
        from tritonclient.grpc import InferenceServerClient

        with InferenceServerClient(task.address) as client:
            yield _grpc(task, client)
    else:
        with closing(http.client.HTTPConnection(task.address, timeout=_TIMEOUT_S)) as connection:
            yield (_kserve if task.door.kind == "kserve" else _http)(task, connection)


def _http(task: Task, connection: http.client.HTTPConnection) -> Question:
    in_json = task.door.kind == "base64"
    headers = {"Content-Type": "application/json" if in_json else "image/jpeg"}

    def question(image: bytes) -> Answer:
        body = json.dumps({"image": base64.b64encode(image).decode()}).encode() if in_json else image
        answer: Answer = json.loads(_posted(connection, task.door.path, body, headers))
        return answer

    return question


def _kserve(task: Task, connection: http.client.HTTPConnection) -> Question:
    path = f"/v2/models/{task.door.path}/infer"

    def question(image: bytes) -> Answer:
        # Raw data of Triton's BYTES: each element after its length, four bytes, the least first.
        raw = len(image).to_bytes(4, "little") + image
        given = {"name": IMAGE, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [given], "outputs": [{"name": name} for name in _OUTPUTS]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        said = json.loads(_posted(connection, path, head + raw, headers))
        outputs = {output["name"]: output["data"] for output in said["outputs"]}
        return _named(outputs["LABEL"][0], outputs["PROBABILITIES"], task.classes)

    return question


def _grpc(task: Task, client: Any) -> Question:
    from tritonclient.grpc import InferInput, InferRequestedOutput

    wanted = [InferRequestedOutput(name) for name in _OUTPUTS]
    spec = task.image

    def question(image: bytes) -> Answer:
        if task.door.kind == "grpc":
            given = InferInput(IMAGE, [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        else:
            pixels = decoded(image, spec)
            given = InferInput(INPUT_PIXELS, [1, *pixels.shape], "UINT8")
            given.set_data_from_numpy(pixels[None])
        said = client.infer(task.door.path, [given], outputs=wanted)
        return _named(said.as_numpy("LABEL").item().decode(), said.as_numpy("PROBABILITIES")[0].tolist(), task.classes)

    return question


def _posted(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    said = response.read()
    if response.status != http.client.OK:
        raise RuntimeError(f"HTTP {response.status}: {said[:200].decode('utf-8', 'replace')}")
    return said


def _named(label: str, probabilities: Sequence[float], classes: Sequence[str]) -> Answer:
    return {"label": label, "probabilities": dict(zip(classes, probabilities, strict=True))}


def _main() -> None:
    said = json.load(sys.stdin)
    said["door"], said["image"] = Door(**said["door"]), ImageSpec.model_validate(said["image"])
    task = Task(**said)
    json.dump(asdict(ask(task)) if task.clients else answers(task), sys.stdout)


if __name__ == "__main__":
    _main()
