"""Plurum beside its peers: the load generator, processes, the result, and a small run."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from plurum.benchmarks.peers import __main__ as peers_command
from plurum.benchmarks.peers import environment
from plurum.benchmarks.peers.__main__ import peers
from plurum.benchmarks.peers.application import Job
from plurum.benchmarks.peers.catalogue import PEERS, Peer
from plurum.benchmarks.peers.environment import python_with
from plurum.benchmarks.peers.load import Endpoint, LoadTask, predictions, run_elsewhere, run_load
from plurum.benchmarks.peers.material import material_of
from plurum.benchmarks.peers.measurement import PeersPlan, disagreement, measure_peers
from plurum.benchmarks.peers.processes import PeerServer, free_port, marked_processes
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.errors import PlurumError, ServerError
from plurum.spec import ImageSpec
from tests.client.stub_server import StubResponse, http_server
from tests.serving.waiting import wait_until

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLAIMS = (
    "bulk", "cascades.cost", "engines", "faults", "frozen", "fused", "gateway", "growth", "guard", "hostile",
    "metrics_cost", "outliers.cost", "overload", "precision", "releases.fleet", "releases.rollouts", "scoring", "soak",
    "throughput", "training", "tune_efficiency",
)  # fmt: skip
IMAGE = ImageSpec(height=32, width=32, mean=(0.3, 0.3, 0.3), std=(0.3, 0.3, 0.3))
ANSWER = {"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}
# A peer with nothing but the standard library, whose predictions are wrong on demand.
APP = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

class Application(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", -1
    def do_POST(self):
        answer = members.predict(self.rfile.read(int(self.headers["Content-Length"])))
        if "wrong" in sys.argv:
            answer["probabilities"] = {name: 0.5 for name in answer["probabilities"]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

job = job_from_environment()
members = OnnxMembers(job)
child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
ThreadingHTTPServer(("127.0.0.1", job.port), Application).serve_forever()
"""


@contextmanager
def answering(reply: Callable[[bytes, str], tuple[int, bytes]]) -> Iterator[str]:
    with http_server(lambda request: StubResponse(*reply(request.body, request.path))) as url:
        yield url.removeprefix("http://")


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, ...]:
    for name in "xyz":
        (tmp_path / name).write_bytes(name.encode() * 10)
    return tuple(str(tmp_path / name) for name in "xyz")


def task(address: str, images: tuple[str, ...], **fields: Any) -> LoadTask:
    endpoint = fields.pop("endpoint", Endpoint(kind="json", path="/predict"))
    return replace(LoadTask(endpoint, address, images, ("a", "b"), IMAGE, clients=2, seconds=0.3), **fields)


def test_so_many_requests_are_in_flight_and_all_are_counted(images: tuple[str, ...]) -> None:
    bodies, flying, most = [], 0, 0
    lock = threading.Lock()

    def slowly(body: bytes, path: str) -> tuple[int, bytes]:
        nonlocal flying, most
        assert path == "/predict"
        with lock:
            flying += 1
            most = max(most, flying)
            bodies.append(body)
        time.sleep(0.02)
        with lock:
            flying -= 1
        return 200, json.dumps(ANSWER).encode()

    with answering(slowly) as address:
        turn = run_load(task(address, images, clients=3))
    assert most == 3
    # The first request of each client warms up.
    assert len(turn.latencies_ms) == len(bodies) - 3
    assert min(turn.latencies_ms) > 20
    # No faster than three at a time can be; a busy machine is slower.
    assert 15 < turn.images_per_s <= 3 / 0.02
    assert set(bodies) == {b"x" * 10, b"y" * 10, b"z" * 10}


def test_every_image_is_answered_once_and_may_travel_as_base_64(images: tuple[str, ...]) -> None:
    def first_letter(body: bytes, _: str) -> tuple[int, bytes]:
        letter = base64.b64decode(json.loads(body)["image"])[:1].decode()
        return 200, json.dumps({"label": letter, "probabilities": {letter: 1.0}}).encode()

    with answering(first_letter) as address:
        found = predictions(task(address, images, endpoint=Endpoint(kind="base64", path="/predict")))
    assert [answer["label"] for answer in found] == ["x", "y", "z"]


def test_responses_of_triton_get_the_same_form(images: tuple[str, ...]) -> None:
    def triton(body: bytes, path: str) -> tuple[int, bytes]:
        assert path == "/v2/models/ensemble/infer"
        # The length in four bytes, then the image.
        assert body[-14:-10] == b"\x0a\0\0\0"
        label, vote = b"\1\0\0\0b", np.array([0.25, 0.75], np.float32).tobytes()
        outputs = [
            {"name": name, "datatype": kind, "shape": [1, size], "parameters": {"binary_data_size": len(binary)}}
            for name, kind, size, binary in (("LABEL", "BYTES", 1, label), ("PROBABILITIES", "FP32", 2, vote))
        ]
        return 200, json.dumps({"model_name": "ensemble", "outputs": outputs}).encode() + label + vote

    with answering(triton) as address:
        found = predictions(task(address, images, endpoint=Endpoint(kind="kserve", path="ensemble")))
    assert found[0] == {"label": "b", "probabilities": {"a": 0.25, "b": 0.75}}


def test_the_load_generator_says_what_the_server_said(images: tuple[str, ...]) -> None:
    with answering(lambda *_: (500, b"out of order")) as address:
        for run in (run_load, run_elsewhere):
            with pytest.raises(ServerError, match="HTTP 500: out of order"):
                run(task(address, images))
    with pytest.raises(ServerError, match="Connect call failed"):
        run_elsewhere(task(f"127.0.0.1:{free_port()}", images))


def test_the_load_runs_in_its_own_process(images: tuple[str, ...]) -> None:
    with answering(lambda *_: (200, json.dumps(ANSWER).encode())) as address:
        assert run_elsewhere(task(address, images, clients=0)) == [ANSWER] * 3
        assert run_elsewhere(task(address, images))["images_per_s"] > 1


def test_answers_are_compared_by_probability_and_by_label() -> None:
    near = {"label": "a", "probabilities": {"a": 0.7504, "b": 0.2496}}
    assert disagreement([near, ANSWER], [ANSWER, ANSWER]) == pytest.approx(0.0004)
    with pytest.raises(ServerError, match="label: expected 'a' as PyTorch predicts, got 'b'"):
        disagreement([{**near, "label": "b"}], [ANSWER])
    tie = {"label": "a", "probabilities": {"a": 0.5001, "b": 0.4999}}
    assert disagreement([{**tie, "label": "b"}], [tie]) == 0
    with pytest.raises(ServerError, match="classes: expected"):
        disagreement([{"label": "a", "probabilities": {"a": 1.0}}], [ANSWER])


def test_descendants_are_found_whatever_they_forget() -> None:
    script = "sleep 60 & env -i sleep 60 & wait"
    with subprocess.Popen(["sh", "-c", script], env={**os.environ, "MARK": "x1"}) as process:
        try:
            deadline = time.monotonic() + 5
            while len(marked_processes("MARK", "x1")) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            found = marked_processes("MARK", "x1")
        finally:
            for one in marked_processes("MARK", "x1"):
                one.kill()
    assert process.pid in {one.pid for one in found}
    assert len(found) == 3
    # A killed process takes a moment to end.
    wait_until(lambda: not marked_processes("MARK", "x1"))


def peer(name: str, *arguments: str, app: str = "", requirements: tuple[str, ...] = ()) -> Peer:
    # Braces stand for values of the job.
    words = ("-c", app.replace("{", "{{").replace("}", "}}"), *arguments)
    return Peer(name, name.title(), "for a test", requirements=requirements, arguments=words)


def test_a_peer_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    job = Job(str(tmp_path), str(tmp_path), free_port(), 1, 1)
    broken = peer("broken", app="raise SystemExit('no model in here')")
    with pytest.raises(ServerError, match="Broken exited: no model in here"):
        PeerServer(broken, Path(sys.executable), job).__enter__()


def test_a_failed_installation_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ServerError, match=r"pip could not install \./nowhere"):
        python_with(("./nowhere",))
    assert not list((tmp_path / "plurum" / "peers").iterdir())


def test_an_environment_is_made_once_and_sees_what_plurum_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = python_with(())
    code = "import plurum, onnxruntime, sys; print(plurum.__file__); print(sys.prefix)"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    import plurum

    ours, prefix = said.split()
    assert ours == plurum.__file__
    assert Path(prefix) == python.parent.parent
    made = python.parent.stat().st_mtime_ns
    assert python_with(()).parent.stat().st_mtime_ns == made


def test_each_peer_has_a_name_an_application_and_a_setup() -> None:
    assert len({one.name for one in PEERS}) == len(PEERS)
    folder = Path(__file__).parent.parent.parent / "benchmarks" / "peers"
    apps = {path.parent.name for path in folder.glob("*/__main__.py")}
    commands = [" ".join(one.words(Job("r", "w", 1234, 2, 1))) for one in PEERS]
    for app in apps:
        assert any(f"peers.{app}." in command or f"peers/{app}/" in command for command in commands), app
    assert all(one.setup and one.requirements for one in PEERS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"peer": ["django"]}, "--peer: expected one of flask"),
        ({"page": Path("none.md")}, "--page: expected a page with the marks <!-- untuned -->"),
        ({"out": Path(__file__).parent}, "expected a new folder or one with earlier results"),
        ({"cascade": True}, "--cascade: expected --trained with it"),
        ({"served": "int8"}, "--served: expected --trained with it"),
        ({"trained": True, "fashion": Path()}, "--fashion: expected --cascade with it"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PlurumError, match=reason):
        peers(**{"work": tmp_path, "out": tmp_path / "out"} | options)
    assert not list(tmp_path.iterdir())


def test_quick_settings_shorten_training_and_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def measure(plan: PeersPlan, *_: object) -> None:
        seen.append(plan)
        raise ServerError("enough")

    def train(work: Path, *_: object, quick: bool, served: str, **_others: object) -> tuple[None, None]:
        seen.append((work.name, quick, served))
        return None, None

    monkeypatch.setattr(peers_command, "trained_material", train)
    monkeypatch.setattr(peers_command, "accuracy_of", lambda *_: None)
    monkeypatch.setattr(peers_command, "measure_peers", measure)
    for quick in (True, False):
        with pytest.raises(ServerError, match="enough"):
            peers(work=tmp_path, out=tmp_path / "out", trained=True, quick=quick)
    (first, short), (second, long) = seen[:2], seen[2:]
    assert (first, second) == (("trained-quick", True, "fp32"), ("trained", False, "tuned"))
    assert (short.clients, short.rounds, short.seconds) == ((8,), 1, 2.0)
    assert (long.clients, long.rounds, long.seconds) == ((8, 1), 3, 5.0)


@pytest.mark.parametrize("name", ["peers", *(f"claims.{claim}" for claim in CLAIMS)])
def test_every_benchmark_has_the_options_on_the_pages(name: str) -> None:
    """The commands themselves take minutes; other tests run the same with little."""
    module = f"plurum.benchmarks.{name}"
    place = f"{module}.__main__" if name in {"peers", "claims.growth", "claims.hostile", "claims.scoring"} else module
    alone = typer.Typer()
    alone.command()(getattr(importlib.import_module(place), name.rpartition(".")[2]))
    command = typer.main.get_command(alone)
    assert CliRunner().invoke(alone, ["--help"]).exit_code == 0
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    pages = " ".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for words in re.findall(rf"python -m {re.escape(module)}\b(?!\.)([^\n`]*)", pages):
        assert set(re.findall(r"--[\w-]+", words)) <= known, words


def test_the_peers_on_the_page_are_there() -> None:
    text = (DOCS / "peers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--peer (\S+)", text)) <= {one.name for one in PEERS}


def test_jpegs_differ_in_colour() -> None:
    means = {Image.open(io.BytesIO(one)).resize((1, 1)).getpixel((0, 0)) for one in coloured_jpegs(32, 32)}
    assert len(means) == len(coloured_jpegs(32, 32))


@pytest.mark.triton
def test_peers_that_predict_alike_are_measured_and_the_others_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plurum beside a peer that answers, one that answers wrongly, and one that can't be had; then nothing is left."""
    # Not the variable: Plurum's server would install its environment there.
    monkeypatch.setattr(environment, "cache_folder", lambda: tmp_path / "cache")
    material = material_of(tmp_path / "work", ["test_resnet"], 64, None, lambda _: None)
    sleepers = _sleepers()
    wanted = (peer("right", app=APP), peer("wrong", "wrong", app=APP), peer("absent", requirements=("./nowhere",)))
    result = measure_peers(PeersPlan(wanted, (2,), 1, 0.3, starts=2), material, lambda _: None)
    assert {one.name for one in result.contenders} == {"right", "plurum-http", "plurum-grpc", "plurum-fused"}
    assert all(one.difference < 1e-4 for one in result.contenders)
    assert result.spread > 1e-3
    reasons = {one.name: one.reason for one in result.left_out}
    assert "differ from PyTorch" in reasons["wrong"] or "as PyTorch predicts" in reasons["wrong"]
    assert "pip could not install" in reasons["absent"]
    assert len(result.turns) == 8
    assert {turn.start for turn in result.turns} == {1, 2}
    assert result.settled is None
    assert "preprocess, fused, labels" in next(one.setup for one in result.contenders if one.name == "plurum-http")
    assert _sleepers() == sleepers


def _sleepers() -> int:
    return sum(one.info["cmdline"] == ["sleep", "600"] for one in psutil.process_iter(["cmdline"]))
