"""Run the programs of docs/from-flask.md: the same request before and after, on the same image."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.run import Run
from plurum.serving import Server
from tests.docs.pages import blocks, commands, run_python

BEFORE, AFTER = blocks("from-flask.md", "python")
COMMANDS = commands("from-flask.md")

pytestmark = pytest.mark.triton


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path, *words: str) -> Iterator[None]:
    """Run a server of the page until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)


def run_request(command: str, folder: Path) -> Any:
    """Run a command of the page as soon as its server listens, and return what it prints."""
    until = time.monotonic() + 60
    while True:
        done = subprocess.run(
            [*shlex.split(command), "--silent", "--fail"], cwd=folder, capture_output=True, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        assert time.monotonic() < until, done
        time.sleep(0.2)


def test_the_page_has_the_same_request_twice() -> None:
    flask, curl, serve, gateway, again = COMMANDS
    assert flask == "flask --app before run --port 5000"
    assert curl == again == "curl -F file=@scan.png http://127.0.0.1:5000/predict"
    assert serve == "plurum serve runs/mine/model_repository"
    assert gateway == "plurum gateway --port 5000"


def test_the_same_request_is_answered_before_and_after(run: Run, served: Server, tmp_path: Path) -> None:
    pytest.importorskip("flask")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run.path)
    (tmp_path / "before.py").write_text(BEFORE)
    Image.fromarray(np.array(run.pixels()[43])).save(tmp_path / "scan.png")
    port = free_port()
    curl = COMMANDS[1].replace("5000", port)
    with running(tmp_path, *COMMANDS[0].replace("5000", port).split()):
        before = run_request(curl, tmp_path)
    # The server of all tests replaces the page's `plurum serve`.
    with running(
        tmp_path, *COMMANDS[3].replace("5000", port).split(), "--triton", served.urls.grpc, "--metrics-port", "0"
    ):
        after = run_request(curl, tmp_path)
        said = run_python(AFTER.replace("5000", port), tmp_path)
    assert before.keys() == {"label", "confidence"}
    assert before.keys() <= after.keys()
    # The one model predicts the same before and after.
    member = after["member_probabilities"]["resnet10t"]
    assert max(member, key=member.__getitem__) == before["label"]
    assert max(member.values()) == pytest.approx(before["confidence"], abs=1e-4)
    assert said.startswith("needs review" if after["review"] else after["label"])
