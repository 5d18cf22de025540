"""What a watched server does when something in it dies, hangs or is stopped while it is being asked.

    python -m plurum.benchmarks.claims.faults --rounds 10

Each round injects one fault under load (clients that ask over HTTP as soon as they are answered, each question with a
deadline of its own) into `plurum serve`, a process of its own: the voter's or a member's process or Triton itself is
killed, a member or Triton is stopped (SIGSTOP), the voter exits, hangs or runs out of memory over a request. Measured,
of each: how long until the status endpoint says 503, how long until it says 200 again and a question is answered, how
many questions failed meanwhile and how long the longest took; and, over all, memory and shared memory before and after.
Not measured: several faults at once; faults of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.askers import Askers, asked
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.errors import ServerError
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.processes import ServerProcesses
from plurum.spec import read_ensemble

__all__ = ["FAULTS", "Round", "Watched", "faults"]

_ARCHS = ("resnet18", "efficientnet_b0")
_DEADLINE_S, _LONGEST_S, _POLL_S = 5.0, 40.0, 0.02
_FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")
# Appended to the voter of the repository under test: a request's id says what becomes of the process.
_PLANTED = """

_kept = []


def _leak():
    import resource

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
    try:
        while True:
            _kept.append(bytearray(1 << 19))
    except MemoryError:
        pass


def _planted(execute):
    import os, time

    def faulty(self, requests):
        ids = {request.request_id() for request in requests}
        if "exit" in ids:
            os._exit(3)
        if "hang" in ids:
            time.sleep(3600)
        if "leak" in ids:
            _leak()
        if _kept:
            # What a real model needs for its own computing.
            bytearray(1 << 20)
        if "raise" in ids:
            raise RuntimeError("planted")
        return execute(self, requests)

    return faulty


TritonPythonModel.execute = _planted(TritonPythonModel.execute)
"""


@dataclass(frozen=True)
class Round:
    """What came of one fault.

    Attributes:
        fault: Its name.
        noticed_s: Until the status endpoint said 503, seconds.
        healed_s: Until it said 200 and a question was answered.
        answered: Questions answered while this went on.
        failed: Questions that got an error, or no answer within their deadline.
        longest_s: The longest that one question took.
    """

    fault: str
    noticed_s: float
    healed_s: float
    answered: int
    failed: int
    longest_s: float


class Watched:
    """`plurum serve` as a process of its own, of a copy of a repository whose voter can be told to fail.

    Attributes:
        urls: Where it answers: http, grpc, metrics, status.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        copy = shutil.copytree(repository, folder / "repository")
        with (copy / "voter" / "1" / "model.py").open("a", encoding="utf-8") as file:
            file.write(_PLANTED)
        # It tells the files apart from those that were exported.
        (copy / "export.json").unlink()
        image = read_ensemble(copy / "ensemble.json").image
        self.pixels = np.full((image.height, image.width, 3), 99, np.uint8)
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "plurum", "serve", str(copy), "--json", *_FREE]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise ServerError(f"plurum serve did not start: {self.log.read_text()}")
        self.urls: dict[str, str] = json.loads(line)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    def is_ready(self) -> bool:
        """Whether its status endpoint says 200."""
        try:
            with urllib.request.urlopen(f"{self.urls['status']}/v2/health/ready", timeout=_DEADLINE_S):  # noqa: S310
                return True
        except OSError:
            return False

    def server(self) -> ServerProcesses:
        """Return the processes of its server."""
        server = ServerProcesses.started_by(self._process.pid)
        if server is None:
            raise ServerError("Triton is not running")
        return server

    def triton(self) -> int:
        """Return the process id of its Triton."""
        return self.server().session

    def stub(self, model: str) -> int:
        """Return the process id of a model's youngest instance: those of versions before may be about to end."""
        return max(process.pid for process, of in self.server().stubs().items() if of == model)

    def member(self) -> int:
        """Return the process id of the youngest instance of a member."""
        ours = {"voter", "preprocess", "labels"}
        return max(process.pid for process, of in self.server().stubs().items() if of not in ours)

    def tell(self, request_id: str) -> None:
        """Send a question with this id, and don't wait for its answer."""

        def ask() -> None:
            # Its connection breaks: that is what it is sent for.
            with contextlib.suppress(Exception):
                asked(self.urls["http"], self.pixels, _LONGEST_S, request_id)

        threading.Thread(target=ask, daemon=True).start()

    def held_bytes(self) -> dict[str, int]:
        """Return how much its processes hold of memory (proportional set size), and killed ones too of /dev/shm."""
        memory = 0
        for process in (self._process.pid, *(one.pid for one in self.server().find())):
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            memory += 1024 * int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])
        return {"memory": memory, "shared_memory": sum(p.stat().st_size for p in SHARED_MEMORY.glob("plurum_*"))}


FAULTS: dict[str, Callable[[Watched], None]] = {
    "voter killed": lambda watched: os.kill(watched.stub("voter"), signal.SIGKILL),
    "member killed": lambda watched: os.kill(watched.member(), signal.SIGKILL),
    "member stopped": lambda watched: os.kill(watched.member(), signal.SIGSTOP),
    "voter exits": lambda watched: watched.tell("exit"),
    "voter hangs": lambda watched: watched.tell("hang"),
    "voter leaks": lambda watched: watched.tell("leak"),
    "Triton killed": lambda watched: os.kill(watched.triton(), signal.SIGKILL),
    "Triton stopped": lambda watched: os.kill(watched.triton(), signal.SIGSTOP),
}


class _Tally:
    """What became of questions about one image."""

    def __init__(self, watched: Watched) -> None:
        self._url, self._pixels, self._lock = watched.urls["http"], watched.pixels, threading.Lock()
        self.answered, self.failed, self.longest_s = 0, 0, 0.0

    def ask(self) -> None:
        start = time.monotonic()
        try:
            asked(self._url, self._pixels, _DEADLINE_S)
            right = True
        except Exception:  # geventhttpclient's errors have no class in common
            right = False
            # Nobody listens for a moment: asking faster tells nothing.
            time.sleep(_POLL_S)
        took = time.monotonic() - start
        with self._lock:
            self.answered, self.failed = self.answered + right, self.failed + (not right)
            self.longest_s = max(self.longest_s, took)


def faults(  # noqa: PLR0913, PLR0917 - one parameter per option
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/benchmark"),
    repository: Annotated[Path | None, typer.Option(help="Instead of one with random weights.")] = None,
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of each fault.")] = 10,
    clients: Annotated[int, typer.Option(min=1, help="That ask all the time.")] = 4,
    pause: Annotated[float, typer.Option(min=0, help="Seconds of health before the next fault.")] = 6.0,
    fault: Annotated[list[str], typer.Option(help="Only this fault; repeat for more.")] = [],  # noqa: B006
) -> None:
    """Inject faults: a table on standard error, one line of JSON on standard output."""
    unknown = sorted(set(fault) - set(FAULTS))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(FAULTS)}")
    console = Console(stderr=True)
    with console.status("members") as status, tempfile.TemporaryDirectory(prefix="plurum_faults_") as folder:
        served = repository or random_repository(work, arch, size, 16, status.update)
        state = machine()
        with Watched(served, Path(folder)) as watched:
            plan = [(number, name) for number in range(rounds) for name in fault or FAULTS]
            # Where memory settles under load, nothing having failed yet.
            with Askers(_Tally(watched).ask, clients):
                time.sleep(pause)
            before = watched.held_bytes()
            results = list(_rounds(watched, plan, clients, pause, status.update))
            after = watched.held_bytes()
    console.print(_table(results))
    report = {
        "rounds": [asdict(one) for one in results],
        "held_bytes": {"before": before, "after": after},
        "clients": clients,
        "deadline_s": _DEADLINE_S,
        "machine": state,
        "versions": versions(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def _rounds(
    watched: Watched, plan: list[tuple[int, str]], clients: int, pause_s: float, say: Callable[[str], None]
) -> Iterator[Round]:
    """Give what came of each round."""
    for number, name in plan:
        say(f"round {number + 1}: {name}")
        tally = _Tally(watched)
        with Askers(tally.ask, clients):
            time.sleep(0.5)
            noticed_s, healed_s = _injected(watched, FAULTS[name])
            time.sleep(pause_s)
        yield Round(name, noticed_s, healed_s, tally.answered, tally.failed, tally.longest_s)


def _injected(watched: Watched, inject: Callable[[Watched], None]) -> tuple[float, float]:
    """Return how long it took until a fault was noticed and healed."""
    start = time.monotonic()
    inject(watched)
    noticed_s = _until(lambda: not watched.is_ready(), start)
    _until(watched.is_ready, start)
    asked(watched.urls["http"], watched.pixels, _DEADLINE_S)
    return noticed_s, time.monotonic() - start


def _until(holds: Callable[[], bool], start: float) -> float:
    while not holds():
        if time.monotonic() - start > _LONGEST_S:
            raise ServerError(f"the fault was not noticed or not healed within {_LONGEST_S:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - start


def _table(results: list[Round]) -> Table:
    table = Table("fault", "rounds", "noticed after, s", "healed after, s", "answered", "failed", "longest question, s")
    for name in dict.fromkeys(one.fault for one in results):
        ones = [one for one in results if one.fault == name]
        noticed, healed = sorted(one.noticed_s for one in ones), sorted(one.healed_s for one in ones)
        middle = len(ones) // 2
        table.add_row(
            name,
            str(len(ones)),
            f"{noticed[middle]:.2f} (at most {noticed[-1]:.2f})",
            f"{healed[middle]:.2f} (at most {healed[-1]:.2f})",
            str(sum(one.answered for one in ones)),
            str(sum(one.failed for one in ones)),
            f"{max(one.longest_s for one in ones):.2f}",
        )
    return table


if __name__ == "__main__":
    typer.run(faults)
