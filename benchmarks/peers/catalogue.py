"""Who is measured, and how each is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plurum.benchmarks.peers.answering import Job
from plurum.benchmarks.peers.asking import Door

__all__ = ["FORMS", "PEERS", "Form", "Peer"]

_FOLDER = Path(__file__).parent
_APP = "plurum.benchmarks.peers"


@dataclass(frozen=True)
class Peer:
    """A framework with an application.

    Attributes:
        name: In results; what `--peer` takes.
        title: For people.
        setup: How it is set up, for people.
        requirements: What pip installs into its environment.
        arguments: From a job to the words after `python`.
        one_thread: Whether a session or process computes with one thread; otherwise the library chooses.
        door: How it is asked.
        workers_per_core: Processes that compute, for frameworks that start several.
        environment: Further variables; `{folder}` is a folder of this run's own.
    """

    name: str
    title: str
    setup: str
    requirements: tuple[str, ...]
    arguments: Callable[[Job], list[str]]
    one_thread: bool
    door: Door
    workers_per_core: int = 1
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Form:
    """A way to ask Plurum.

    Attributes:
        name: In results.
        title: For people.
        setup: Who decodes, for people.
        door: How it is asked.
    """

    name: str
    title: str
    setup: str
    door: Door


def _gunicorn(job: Job) -> list[str]:
    options = ["--workers", str(job.workers), "--bind", f"127.0.0.1:{job.port}", "--log-level", "warning"]
    return ["-m", "gunicorn", *options, f"{_APP}.flask.__main__:app"]


def _uvicorn(job: Job) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(job.port), "--no-access-log", "--log-level", "warning"]
    return ["-m", "uvicorn", *options, f"{_APP}.fastapi.__main__:app"]


def _bentoml(job: Job) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(job.port)]
    return ["-m", "bentoml", "serve", *options, f"{_APP}.bentoml.__main__:Ensemble"]


def _mosec(job: Job) -> list[str]:
    return [str(_FOLDER / "mosec" / "__main__.py"), "--address", "127.0.0.1", "--port", str(job.port)]


def _script(name: str) -> Callable[[Job], list[str]]:
    return lambda _: [str(_FOLDER / name / "__main__.py")]


_BODY = Door(kind="json", path="/predict")
_ONE_IMAGE_A_CORE = "a process a core, one thread a session, no batching (it gains nothing on a CPU)"
PEERS = (
    Peer(
        name="flask",
        title="Flask, PyTorch",
        setup="Gunicorn, 2 workers a core (where Flask's documentation says to begin), PyTorch's own number of threads",
        requirements=("flask>=3", "gunicorn>=23"),
        arguments=_gunicorn,
        one_thread=False,
        door=_BODY,
        workers_per_core=2,
    ),
    Peer(
        name="flask-one-thread",
        title="Flask, PyTorch, 1 thread",
        setup="Gunicorn, a worker a core, one thread a worker",
        requirements=("flask>=3", "gunicorn>=23"),
        arguments=_gunicorn,
        one_thread=True,
        door=_BODY,
    ),
    Peer(
        name="fastapi",
        title="FastAPI, ONNX Runtime",
        setup="Uvicorn, a thread a request, as many threads a session as there are cores (the library's choice)",
        requirements=("fastapi>=0.115", "uvicorn[standard]>=0.32"),
        arguments=_uvicorn,
        one_thread=False,
        door=_BODY,
    ),
    Peer(
        name="fastapi-one-thread",
        title="FastAPI, ONNX Runtime, 1 thread",
        setup="Uvicorn, a thread a request, one thread a session",
        requirements=("fastapi>=0.115", "uvicorn[standard]>=0.32"),
        arguments=_uvicorn,
        one_thread=True,
        door=_BODY,
    ),
    Peer(
        name="litserve",
        title="LitServe, ONNX Runtime",
        setup=f"workers_per_device = cores: {_ONE_IMAGE_A_CORE}",
        requirements=("litserve>=0.2.10",),
        arguments=_script("litserve"),
        one_thread=True,
        door=Door(kind="base64", path="/predict"),
    ),
    Peer(
        name="bentoml",
        title="BentoML, ONNX Runtime",
        setup=f"workers = cores: {_ONE_IMAGE_A_CORE}",
        requirements=("bentoml>=1.4",),
        arguments=_bentoml,
        one_thread=True,
        door=_BODY,
        environment=(("BENTOML_DO_NOT_TRACK", "True"), ("BENTOML_HOME", "{folder}")),
    ),
    Peer(
        name="mosec",
        title="Mosec, ONNX Runtime",
        setup=f"num = cores: {_ONE_IMAGE_A_CORE}",
        requirements=("mosec>=0.9",),
        arguments=_mosec,
        one_thread=True,
        door=_BODY,
    ),
    Peer(
        name="ray-serve",
        title="Ray Serve, ONNX Runtime",
        setup=f"num_replicas = cores: {_ONE_IMAGE_A_CORE}",
        requirements=("ray[serve]>=2.40",),
        arguments=_script("ray"),
        one_thread=True,
        door=_BODY,
        environment=(("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_TMPDIR", "{folder}")),
    ),
)
FORMS = (
    Form(
        name="plurum-http",
        title="Plurum, HTTP",
        setup="the server decodes the JPEG",
        door=Door(kind="kserve", path="ensemble"),
    ),
    Form(
        name="plurum-grpc",
        title="Plurum, gRPC",
        setup="the server decodes the JPEG",
        door=Door(kind="grpc", path="ensemble"),
    ),
    Form(
        name="plurum-fused",
        title="Plurum, fused graph, gRPC",
        setup="who asks decodes the JPEG, on the same cores, within the time measured",
        door=Door(kind="grpc-pixels", path="ensemble_fused"),
    ),
)
