"""Debian's Prometheus: from PATH, else unpacked into the user's cache; nothing is installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plurum.files import atomic_folder, cache_folder

NAMES = ("prometheus", "promtool")
DOWNLOAD_S, START_S = 300, 20


def find_prometheus() -> dict[str, Path] | str:
    """Where `prometheus` and `promtool` are, set up if need be; or why they can't be had."""
    found = {name: Path(path) for name in NAMES if (path := shutil.which(name))}
    if len(found) == len(NAMES):
        return found
    folder = cache_folder() / "prometheus-debian"
    if not folder.is_dir() and (reason := set_up(folder)):
        return reason
    return {name: folder / name for name in NAMES}


def set_up(folder: Path) -> str | None:
    """Fill `folder` from Debian's package; return why that can't be done."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "no prometheus on PATH, and this is no Debian to take one from"
    with tempfile.TemporaryDirectory(prefix="plurum_prometheus_") as name:
        place = Path(name)
        # apt hands the download to a user of its own, who must be able to reach the folder.
        place.chmod(0o755)
        (place / "lists" / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::Lists={place / 'lists'}")
        # Where nobody has asked for the lists of packages yet, into a folder of ours.
        attempts: list[list[tuple[str, ...]]] = [
            [("apt-get", "download", "prometheus")],
            [("apt-get", *own, "update"), ("apt-get", *own, "download", "prometheus")],
        ]
        for attempt in attempts:
            if all(said_well(*command, place=place) for command in attempt):
                break
        packages = list(place.glob("prometheus_*.deb"))
        if not packages or not said_well("dpkg-deb", "-x", packages[0].name, "unpacked", place=place):
            return "no prometheus on PATH, and apt-get download prometheus does not bring one"
        with atomic_folder(folder) as hidden:
            for name_ in NAMES:
                shutil.copy(place / "unpacked" / "usr" / "bin" / name_, hidden / name_)
    return None


def said_well(*command: str, place: Path) -> bool:
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, check=False, timeout=DOWNLOAD_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextlib.contextmanager
def running(binary: Path, config: Path, folder: Path) -> Iterator[str]:
    """Give the URL of a Prometheus that keeps what it scrapes in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"config.file": config, "storage.tsdb.path": folder, "web.listen-address": address, "log.level": "warn"}
    log = folder.with_suffix(".log")
    with (
        log.open("wb") as file,
        subprocess.Popen([binary, *(f"--{name}={value}" for name, value in options.items())], stderr=file) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not is_ready(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://{address}"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def ask(url: str, path: str, **parameters: str) -> Any:
    """What Prometheus' HTTP API answers; what it refuses fails the test with its reason."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
