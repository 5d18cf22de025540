"""Inject faults into a watched server while clients send requests: a process exits, hangs, or is stopped.

    python -m plurum.benchmarks.claims.faults --rounds 10

Each round injects one fault under load into `plurum serve`, a process of its own. The load is clients that send
requests over HTTP one after the other, each with a deadline. Faults: the voter's or a member's process or Triton itself
is killed; a member or Triton is stopped (SIGSTOP); the voter exits, hangs or runs out of memory over a request.
Measured, for each: the time until the status endpoint responds with 503; the time until it responds with 200 again and
a request succeeds; failed requests meanwhile and the longest request; and, over all rounds, memory and shared memory
before and after. Not measured: several faults at once; faults of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
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
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.background import background_clients, request_probabilities
from plurum.benchmarks.tools.machine import memory_bytes
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.servers import PlurumProcess, roles_of, triton_of
from plurum.errors import ServerError, SettingsError
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.processes import ServerProcesses
from plurum.serving.triton.staging import read_config
from plurum.spec import read_ensemble

__all__ = ["FAULTS", "FaultyServer", "Round", "faults"]

_DEADLINE_S, _LONGEST_S, _POLL_S = 5.0, 40.0, 0.02
# Appended to the voter of the repository under test: the id of a request selects the fault.
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
            # Memory that a real model needs for its own computing.
            bytearray(1 << 20)
        if "raise" in ids:
            raise RuntimeError("planted")
        return execute(self, requests)

    return faulty


TritonPythonModel.execute = _planted(TritonPythonModel.execute)
"""


@dataclass(frozen=True)
class Round:
    """The outcome of one fault.

    Attributes:
        fault: Name of the fault.
        noticed_s: Time until the status endpoint responded with 503, seconds.
        healed_s: Time until it responded with 200 again and a request succeeded, seconds.
        answered: Number of successful requests during the round.
        failed: Number of requests with an error, or without a response within their deadline.
        longest_s: Longest time that one request took, seconds.
    """

    fault: str
    noticed_s: float
    healed_s: float
    answered: int
    failed: int
    longest_s: float


def _check_is_chain(repository: Path) -> None:
    """Check that the ensemble votes in the voter, into which faults are planted.

    Raises:
        SettingsError: it does not.
    """
    if "voter" not in {step.model_name for step in read_config(repository / "ensemble").ensemble_scheduling.step}:
        raise SettingsError(f"--repository: expected a chain, got {repository}. Export it with --form chain.")


class FaultyServer(PlurumProcess):
    """`plurum serve` of a copy of a repository whose voter fails on demand, to be used in a `with` block.

    Args:
        repository: Repository to copy.
        folder: Folder that receives the copy.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        copy = shutil.copytree(repository, folder / "repository")
        with (copy / "voter" / "1" / "model.py").open("a", encoding="utf-8") as file:
            file.write(_PLANTED)
        # The manifest would reveal that the voter is not the exported one.
        (copy / "export.json").unlink(missing_ok=True)
        image = read_ensemble(copy / "ensemble.json").image
        self.pixels = np.full((image.height, image.width, 3), 99, np.uint8)
        self._names: set[str] = set()
        super().__init__("serve", copy)

    def __enter__(self) -> FaultyServer:
        return self

    def is_ready(self) -> bool:
        """Return True if the status endpoint responds with 200."""
        try:
            with urllib.request.urlopen(f"{self.urls['status']}/v2/health/ready", timeout=_DEADLINE_S):  # noqa: S310
                return True
        except OSError:
            return False

    def kill(self, model: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process: `triton`, or the youngest instance of a model; `member` is any member."""
        server = self._triton()
        if model == "triton":
            os.kill(server.session, number)
            return
        others = {"voter", "preprocess", "labels"}
        found = [
            one.pid for one, of in server.stubs().items() if of == model or (model == "member" and of not in others)
        ]
        # The youngest: instances of earlier versions may be about to exit.
        os.kill(max(found), number)

    def request_fault(self, request_id: str) -> None:
        """Send a request with this id, and do not wait for the response."""

        def send() -> None:
            # The fault breaks the connection.
            with contextlib.suppress(Exception):
                request_probabilities(self.urls["http"], self.pixels, _LONGEST_S, request_id)

        threading.Thread(target=send, daemon=True).start()

    def held_bytes(self) -> dict[str, int]:
        """Return the memory of the processes (proportional set size), and this server's files in /dev/shm, bytes."""
        self._triton()
        shared = sum(path.stat().st_size for name in self._names for path in SHARED_MEMORY.glob(f"{name}*"))
        return {"memory": sum(memory_bytes(roles_of(self)).values()), "shared_memory": shared}

    def _triton(self) -> ServerProcesses:
        """Return the processes of Triton, and remember its name: a Triton that was killed may leave files."""
        server = triton_of(self)
        self._names.add(server.name)
        return server


FAULTS: dict[str, Callable[[FaultyServer], None]] = {
    "voter killed": lambda server: server.kill("voter"),
    "member killed": lambda server: server.kill("member"),
    "member stopped": lambda server: server.kill("member", signal.SIGSTOP),
    "voter exits": lambda server: server.request_fault("exit"),
    "voter hangs": lambda server: server.request_fault("hang"),
    "voter leaks": lambda server: server.request_fault("leak"),
    "Triton killed": lambda server: server.kill("triton"),
    "Triton stopped": lambda server: server.kill("triton", signal.SIGSTOP),
}


class _Counter:
    """Sends requests with one image, and counts successes and failures."""

    def __init__(self, server: FaultyServer) -> None:
        self._url, self._pixels, self._lock = server.urls["http"], server.pixels, threading.Lock()
        self.answered, self.failed, self.longest_s = 0, 0, 0.0

    def send(self) -> None:
        start = time.monotonic()
        try:
            request_probabilities(self._url, self._pixels, _DEADLINE_S)
            is_answered = True
        except Exception:  # errors of geventhttpclient have no class in common
            is_answered = False
            # Nothing listens for a moment: more frequent requests would tell nothing.
            time.sleep(_POLL_S)
        took = time.monotonic() - start
        with self._lock:
            self.answered, self.failed = self.answered + is_answered, self.failed + (not is_answered)
            self.longest_s = max(self.longest_s, took)


def faults(  # noqa: PLR0913, PLR0917 - one parameter per option
    work: command.WorkFolder = Path("runs/benchmark"),
    repository: command.ServedRepository = None,
    arch: command.Architectures = command.ARCHS[:2],
    size: command.ImageSize = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds of each fault.")] = 10,
    clients: command.Clients = 4,
    pause: Annotated[float, typer.Option(min=0, help="Healthy time before the next fault, seconds.")] = 6.0,
    fault: Annotated[list[str], typer.Option(help="Only this fault; repeat for more.")] = [],  # noqa: B006
) -> None:
    """Inject faults: a table on standard error, one line of JSON on standard output."""
    if unknown := sorted(set(fault) - set(FAULTS)):
        raise SettingsError(f"--fault: expected one of {', '.join(FAULTS)}, got {unknown[0]!r}.")
    with command.measurement("members") as (say, state), tempfile.TemporaryDirectory(prefix="plurum_faults_") as folder:
        served = repository or random_repository(work, arch, size, 16, say, form="chain")
        _check_is_chain(served)
        with FaultyServer(served, Path(folder)) as server:
            plan = [(number, name) for number in range(rounds) for name in fault or FAULTS]
            # Memory settles under load before the first fault.
            with background_clients(_Counter(server).send, clients):
                time.sleep(pause)
            before = server.held_bytes()
            results = list(_rounds(server, plan, clients, pause, say))
            after = server.held_bytes()
    report = {
        "rounds": [asdict(one) for one in results],
        "held_bytes": {"before": before, "after": after},
        "clients": clients,
        "deadline_s": _DEADLINE_S,
    }
    command.print_report(report, state, _table(results))


def _rounds(
    server: FaultyServer, plan: list[tuple[int, str]], clients: int, pause_s: float, say: command.Say
) -> Iterator[Round]:
    """Give the outcome of each round."""
    for number, name in plan:
        say(f"round {number + 1}: {name}")
        counter = _Counter(server)
        with background_clients(counter.send, clients):
            time.sleep(0.5)
            noticed_s, healed_s = _inject(server, FAULTS[name])
            time.sleep(pause_s)
        yield Round(name, noticed_s, healed_s, counter.answered, counter.failed, counter.longest_s)


def _inject(server: FaultyServer, fault: Callable[[FaultyServer], None]) -> tuple[float, float]:
    """Return the seconds until a fault was noticed, and until it was healed."""
    start = time.monotonic()
    fault(server)
    noticed_s = _wait_for(lambda: not server.is_ready(), start)
    _wait_for(server.is_ready, start)
    request_probabilities(server.urls["http"], server.pixels, _DEADLINE_S)
    return noticed_s, time.monotonic() - start


def _wait_for(holds: Callable[[], bool], start: float) -> float:
    while not holds():
        if time.monotonic() - start > _LONGEST_S:
            raise ServerError(f"the fault was not noticed or not healed within {_LONGEST_S:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - start


def _table(results: list[Round]) -> Table:
    table = Table("fault", "rounds", "noticed after, s", "healed after, s", "answered", "failed", "longest request, s")
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
    command.run_as_program(faults)
