"""`plurum ui` in a separate process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.client.ui import ReviewStore
from tests.cli.processes import run_until_signal
from tests.client.samples import png, prediction

NOWHERE = ("--url", "127.0.0.1:1")


def ended(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plurum", "ui", *NOWHERE, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(folder),
    )


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "200"}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_prints_its_url_and_exits_normally_on_a_signal(end: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()

    def connect(lines: list[str]) -> None:
        # The socket listens before the URL is printed.
        socket.create_connection(("127.0.0.1", int(lines[0].rsplit(":", 1)[1])), timeout=10).close()

    options = {"cwd": tmp_path / "here", "env": environment(tmp_path)}
    done = run_until_signal("ui", *NOWHERE, "--port", 0, lines=3, end=end, meanwhile=connect, **options)
    assert re.fullmatch(r"page     http://127\.0\.0\.1:\d+\n", done.lines[0])
    assert done.lines[1:] == [f"reviews  {tmp_path / 'data' / 'plurum' / 'reviews'}\n", "stop it: Ctrl-C\n"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "here").iterdir()) == []


def test_warning_when_it_faces_a_network(tmp_path: Path) -> None:
    options = ("--port", 0, "--host", "0.0.0.0", "--store", tmp_path / "reviews")  # noqa: S104 (on purpose)
    done = run_until_signal("ui", *NOWHERE, *options, lines=3)
    assert done.lines[0].startswith("page     http://0.0.0.0:")
    assert "there is no login: everyone who can reach 0.0.0.0 sees all images" in done.stderr
    assert done.returncode == 0


def test_decisions_are_exported_without_a_page(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "reviews")
    sha256 = store.add(png(1), "scan.png", prediction())
    store.decide(sha256, "LAA", 0)
    done = ended(tmp_path, "--store", "reviews", "--export", "out.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 images in out.csv\n", "")
    assert f"{sha256}.png,LAA,CE," in (tmp_path / "out.csv").read_text()


def test_used_port_gives_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ended(tmp_path, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "Address already in use. Stop the program that uses it, or change --port." in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_has_examples_and_says_that_there_is_no_login(tmp_path: Path) -> None:
    text = ended(tmp_path, "--help").stdout
    for expected in ("plurum ui --store reviews --export corrections.csv", "plurum train corrections.csv", "NO login"):
        assert expected in text
