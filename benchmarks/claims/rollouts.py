"""Changing what a live server serves, there and back, while it is being asked.

    python -m plurum.benchmarks.claims.rollouts REPO OTHER --times 20

`plurum serve --releases` serves REPO; clients ask `ensemble_pixels` over HTTP as soon as they are answered, always
about the same images; `plurum rollout OTHER` and `plurum rollout --back` take turns. Counted: questions answered,
questions failed, and of which release each answer was. An answer belongs to a release when the vote and every member's
probabilities are that release's, so one that mixed two releases would belong to none. Not measured: many different
releases, a machine where both don't fit into memory.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.askers import Askers, asked
from plurum.benchmarks.tools.machine import machine, versions
from plurum.errors import ServerError
from plurum.serving import Server, ServerSettings
from plurum.spec import read_ensemble

__all__ = ["Asked", "Live", "answers_of", "rollouts"]

_FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")
_IMAGES, _TOLERANCE, _DEADLINE_S = 4, 1e-5, 60.0


class Live:
    """`plurum serve --releases` as a process of its own, and `plurum rollout` beside it.

    Args:
        folder: Of the releases.
        repository: Served at first; None where the folder says what is public.
    """

    def __init__(self, folder: Path, repository: Path | None) -> None:
        self.folder = folder
        self._log = Path(tempfile.mkstemp(prefix="plurum_live_")[1])
        words = [*([str(repository)] if repository else []), "--releases", str(folder), "--json", *_FREE]
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "plurum", "serve", *words]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            raise ServerError(f"plurum serve did not start: {self.said()}")
        self.urls: dict[str, str] = json.loads(line)
        self.url = self.urls["http"]

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        if kind is not None:
            # Why it was so is in what the server said, and nowhere else.
            sys.stderr.write(self.said())
        self._log.unlink()

    def said(self) -> str:
        """Return what the server has written to standard error."""
        return self._log.read_text()

    def rollout(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `plurum rollout`."""
        command = [sys.executable, "-m", "plurum", "rollout", *map(str, arguments), "--releases", str(self.folder)]
        return subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=300)


class Asked:
    """Clients that ask about the same images all the time, to be used in a `with` block.

    Args:
        url: The server's.
        pixels: uint8 `[images, height, width, 3]`, asked about at random.
        expected: Of each release, what it says of those images; see `answers_of`.
        clients: That ask at once.

    Attributes:
        answers: How many were each release's; `mixed` those that were none's.
        failures: Why questions failed.
    """

    def __init__(
        self, url: str, pixels: npt.NDArray[np.uint8], expected: dict[str, npt.NDArray[np.float32]], clients: int = 4
    ) -> None:
        self._url, self._pixels, self._expected = url, pixels, expected
        self._askers, self._lock = Askers(self._ask, clients), threading.Lock()
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []

    def __enter__(self) -> Asked:
        self._askers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._askers.__exit__(kind, error, trace)

    def _ask(self) -> None:
        number = random.randrange(len(self._pixels))  # noqa: S311 (any of them will do)
        try:
            answer = asked(self._url, self._pixels[number], _DEADLINE_S)
        except Exception as error:  # geventhttpclient's errors have no class in common
            with self._lock:
                self.failures.append(repr(error))
            return
        names = [name for name, of in self._expected.items() if np.abs(of[number] - answer).max() <= _TOLERANCE]
        name = names[0] if len(names) == 1 else "mixed"
        with self._lock:
            self.answers[name] = self.answers.get(name, 0) + 1


def answers_of(repository: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return what a server of this repository alone says: vote and members, `[images, 1 + members, classes]`."""
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        return np.stack([asked(server.urls.http, image, _DEADLINE_S) for image in pixels])


def rollouts(
    repository: Annotated[Path, typer.Argument(help="Served at first.")],
    other: Annotated[Path, typer.Argument(help="Made public, and taken back again.")],
    times: Annotated[int, typer.Option(min=1, help="There and back.")] = 20,
    clients: Annotated[int, typer.Option(min=1, help="That ask all the time.")] = 4,
) -> None:
    """Roll out and back: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    image = read_ensemble(repository / "ensemble.json").image
    pixels = np.random.default_rng(0).integers(0, 256, (_IMAGES, image.height, image.width, 3), dtype=np.uint8)
    with console.status("what each answers alone") as status, tempfile.TemporaryDirectory(prefix="plurum_") as folder:
        expected = {"first": answers_of(repository, pixels), "second": answers_of(other, pixels)}
        state, took = machine(), []
        with Live(Path(folder) / "releases", repository) as live, Asked(live.url, pixels, expected, clients) as asking:
            for number in range(times):
                status.update(f"there and back {number + 1} of {times}")
                for arguments in ((other,), ("--back",)):
                    start = time.monotonic()
                    done = live.rollout(*arguments)
                    if done.returncode:
                        raise ServerError(f"plurum rollout failed: {done.stderr}")
                    took.append(time.monotonic() - start)
    table = Table("rollouts", "longest, s", *(f"answers of the {name}" for name in expected), "of none", "failed")
    counts = [asking.answers.get(name, 0) for name in (*expected, "mixed")]
    table.add_row(str(len(took)), f"{max(took):.1f}", *map(str, counts), str(len(asking.failures)))
    console.print(table)
    report = {
        "rollouts_s": took,
        "answers": asking.answers,
        "failures": asking.failures,
        "clients": clients,
        "machine": state,
        "versions": versions(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    typer.run(rollouts)
