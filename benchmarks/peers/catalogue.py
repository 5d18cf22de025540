"""The frameworks to measure, and their set-up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from plurum.benchmarks.peers.application import Job
from plurum.benchmarks.peers.load import Endpoint

__all__ = ["PEERS", "PLURUM_ENDPOINTS", "MeasuredEndpoint", "Peer"]

_FOLDER = Path(__file__).parent
_APP = "plurum.benchmarks.peers"
_BODY = Endpoint(kind="json", path="/predict")


@dataclass(frozen=True)
class MeasuredEndpoint:
    """An endpoint to measure; those of Plurum are nothing more.

    Attributes:
        name: Name in results.
        title: Name for people.
        setup: Set-up for people.
        endpoint: Endpoint that receives the images.
    """

    name: str
    title: str
    setup: str
    endpoint: Endpoint


@dataclass(frozen=True, kw_only=True)
class Peer(MeasuredEndpoint):
    """A framework with an application; `--peer` takes its name.

    Attributes:
        requirements: Packages that pip installs into its environment.
        arguments: Words after `python`; `{port}` and `{workers}` are those of the job.
        one_thread: If True, each session or process computes with one thread; otherwise the library chooses.
        workers_per_core: Computing processes per core, for frameworks that start several.
        environment: Further variables; `{folder}` is a folder of this run.
    """

    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    endpoint: Endpoint = _BODY
    one_thread: bool = True
    workers_per_core: int = 1
    environment: tuple[tuple[str, str], ...] = ()

    def words(self, job: Job) -> list[str]:
        """Return the words after `python` for a job."""
        return [word.format(port=job.port, workers=job.workers) for word in self.arguments]


_HTTP = ("--host", "127.0.0.1", "--port", "{port}")
_WORKER_PER_CORE = "a process per core, one thread per session, no batching (it gains nothing on a CPU)"
_FLASK = Peer(
    name="flask",
    title="Flask, PyTorch",
    setup="Gunicorn, 2 workers per core (the start that Flask's documentation recommends), PyTorch's number of threads",
    requirements=("flask>=3", "gunicorn>=23"),
    arguments=(
        *("-m", "gunicorn", "--workers", "{workers}", "--bind", "127.0.0.1:{port}", "--log-level", "warning"),
        f"{_APP}.flask.__main__:app",
    ),
    one_thread=False,
    workers_per_core=2,
)
_FASTAPI = Peer(
    name="fastapi",
    title="FastAPI, ONNX Runtime",
    setup="Uvicorn, a thread per request, as many threads per session as there are cores (the library's choice)",
    requirements=("fastapi>=0.115", "uvicorn[standard]>=0.32"),
    arguments=("-m", "uvicorn", *_HTTP, "--no-access-log", "--log-level", "warning", f"{_APP}.fastapi.__main__:app"),
    one_thread=False,
)
PEERS = (
    _FLASK,
    replace(
        _FLASK,
        name="flask-one-thread",
        title="Flask, PyTorch, 1 thread",
        setup="Gunicorn, a worker per core, one thread per worker",
        one_thread=True,
        workers_per_core=1,
    ),
    _FASTAPI,
    replace(
        _FASTAPI,
        name="fastapi-one-thread",
        title="FastAPI, ONNX Runtime, 1 thread",
        setup="Uvicorn, a thread per request, one thread per session",
        one_thread=True,
    ),
    Peer(
        name="litserve",
        title="LitServe, ONNX Runtime",
        setup=f"workers_per_device = cores: {_WORKER_PER_CORE}",
        requirements=("litserve>=0.2.10",),
        arguments=(f"{_FOLDER}/litserve/__main__.py",),
        endpoint=Endpoint(kind="base64", path="/predict"),
    ),
    Peer(
        name="bentoml",
        title="BentoML, ONNX Runtime",
        setup=f"workers = cores: {_WORKER_PER_CORE}",
        requirements=("bentoml>=1.4",),
        arguments=("-m", "bentoml", "serve", *_HTTP, f"{_APP}.bentoml.__main__:BentoMembers"),
        environment=(("BENTOML_DO_NOT_TRACK", "True"), ("BENTOML_HOME", "{folder}")),
    ),
    Peer(
        name="mosec",
        title="Mosec, ONNX Runtime",
        setup=f"num = cores: {_WORKER_PER_CORE}",
        requirements=("mosec>=0.9",),
        arguments=(f"{_FOLDER}/mosec/__main__.py", "--address", "127.0.0.1", "--port", "{port}"),
    ),
    Peer(
        name="ray-serve",
        title="Ray Serve, ONNX Runtime",
        setup=f"num_replicas = cores: {_WORKER_PER_CORE}",
        requirements=("ray[serve]>=2.40",),
        arguments=(f"{_FOLDER}/ray/__main__.py",),
        environment=(("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_TMPDIR", "{folder}")),
    ),
)
_SERVER_DECODES = "the server decodes the JPEG"
PLURUM_ENDPOINTS = (
    MeasuredEndpoint("plurum-http", "Plurum, HTTP", _SERVER_DECODES, Endpoint(kind="kserve", path="ensemble")),
    MeasuredEndpoint("plurum-grpc", "Plurum, gRPC", _SERVER_DECODES, Endpoint(kind="grpc", path="ensemble")),
    MeasuredEndpoint(
        "plurum-fused",
        "Plurum, fused graph, gRPC",
        "the client decodes the JPEG, on the same cores, within the measured time",
        Endpoint(kind="grpc-pixels", path="ensemble_fused"),
    ),
)
