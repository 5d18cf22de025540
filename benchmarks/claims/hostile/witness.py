"""A process beside the attack: honest clients, and an observer of the attacked processes.

It is a process of its own, so that sending attacks takes no time from it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil

from plurum.benchmarks.claims.hostile.honest import HonestClient, HonestRequest, honest_clients
from plurum.benchmarks.claims.hostile.wires import ServerPort
from plurum.benchmarks.tools.machine import peak_bytes

__all__ = ["HeldResources", "Witness"]

_SAMPLE_S, _MAPS_S, _START_S = 0.25, 2.0, 120.0
_SHARED_MEMORY = "/dev/shm/"  # noqa: S108 (where Linux keeps it)


@dataclass
class HeldResources:
    """Largest amounts of resources that the processes have held.

    Attributes:
        rss_bytes: Highest resident memory of one process, by its role, bytes.
        files: Highest number of open file descriptors of one process, by its role.
        shared_memory: Names in /dev/shm that the processes have mapped.
        shared_bytes: Highest total size of those regions, bytes.
        temporary_bytes: Highest total size of their temporary folder, bytes.
        open_to_others: Regions and temporary files that another user could have read.
    """

    rss_bytes: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    shared_memory: set[str] = field(default_factory=set)
    shared_bytes: int = 0
    temporary_bytes: int = 0
    open_to_others: set[str] = field(default_factory=set)


class Witness:
    """The process, to be used in a `with` block.

    Args:
        places: Ports of the targets.
        key: Key of the gateway with TLS.
        images: JPEG files of honest clients.
        temporary: Temporary folder of the attacked processes.
    """

    def __init__(self, places: dict[str, ServerPort], key: str, images: list[bytes], temporary: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._end = context.Event()
        self._came, sender = context.Pipe(duplex=False)
        arguments = (sender, self._end, os.getpid(), temporary, places, key, images)
        self._process = context.Process(target=_run_witness, args=arguments, daemon=True)
        self._lock = threading.Lock()
        self._seen: list[HonestRequest] = []
        self.held = HeldResources()

    def __enter__(self) -> Witness:
        self._process.start()
        if not self._came.poll(_START_S) or self._came.recv() != "ready":
            raise RuntimeError("the honest clients did not start")
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()

    def take(self, since_s: float) -> list[HonestRequest]:
        """Return the requests of honest clients, after each client has had a response to one sent after `since_s`."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with self._lock:
                missing = set(_CLIENTS) - {one.client for one in self._seen if one.start_s >= since_s}
            if not missing:
                break
            time.sleep(0.02)
        with self._lock:
            seen, self._seen = self._seen, []
        return seen + [HonestRequest(one, since_s, time.monotonic(), 1, False, "no response") for one in missing]

    def _read(self) -> None:
        while True:
            try:
                came = self._came.recv()
            except (EOFError, OSError):
                return
            with self._lock:
                if isinstance(came, HeldResources):
                    self.held = came
                else:
                    self._seen.append(came)


_CLIENTS = ("Triton, gRPC", "Triton, HTTP", "gateway", "gateway, TLS", "page")


def _run_witness(sender: Connection, end: Event, owner: int, temporary: Path, *honest: Any) -> None:
    clients = honest_clients(*honest)
    lock = threading.Lock()

    def tell(what: Any) -> None:
        with lock, contextlib.suppress(OSError):
            sender.send(what)

    def run_client(client: HonestClient) -> None:
        while not end.is_set():
            if (seen := client.send_until_answered(end.is_set)) is not None:
                tell(seen)

    tell("ready")
    observer = _Observer(owner, temporary)
    with ThreadPoolExecutor(len(clients)) as pool:
        pool.map(run_client, clients)
        while not end.wait(_SAMPLE_S):
            observer.look()
            tell(observer.held)


class _Observer:
    """Observes the descendants of one process, which has started the attacked processes."""

    def __init__(self, owner: int, temporary: Path) -> None:
        self._owner, self._temporary = psutil.Process(owner), temporary
        self._mapped_at = 0.0
        self.held = HeldResources()

    def look(self) -> None:
        found = {}
        for process in self._owner.children(recursive=True):
            # Processes may exit meanwhile.
            with contextlib.suppress(psutil.Error, OSError, IndexError):
                if process.pid != os.getpid() and (name := _name_of(process)):
                    found[process] = name
                    _raise(self.held.rss_bytes, name, peak_bytes(process.pid))
                    _raise(self.held.files, name, process.num_fds())
        if time.monotonic() - self._mapped_at > _MAPS_S:
            self._mapped_at = time.monotonic()
            self._look_at_files(list(found))

    def _look_at_files(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error, OSError):
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                self.held.shared_memory |= {
                    line.partition(_SHARED_MEMORY)[2] for line in lines if _SHARED_MEMORY in line
                }
        regions = [Path(_SHARED_MEMORY) / name for name in self.held.shared_memory]
        sizes: defaultdict[bool, int] = defaultdict(int)
        for path in (*regions, *self._temporary.rglob("*")):
            with contextlib.suppress(OSError):
                status = path.stat()
                sizes[path.parent == Path(_SHARED_MEMORY)] += status.st_size
                if path.is_file() and _is_open(path, self._temporary):
                    self.held.open_to_others.add(str(path))
        self.held.shared_bytes = max(self.held.shared_bytes, sizes[True])
        self.held.temporary_bytes = max(self.held.temporary_bytes, sizes[False])


def _name_of(process: psutil.Process) -> str:
    """Return the role of a process by its command line; empty if it is not an attacked process."""
    command = process.cmdline()
    if not command or "plurum.benchmarks.claims.hostile" in command or "multiprocessing" in " ".join(command):
        return ""
    program = Path(command[0]).name
    words = command[command.index("plurum") + 1 :] if "plurum" in command else []
    # Attackers of the command line have a folder each.
    is_command = "command-" in process.cwd()
    if program == "tritonserver":
        name = "Triton"
    elif "stub" in program:
        parts = Path(command[1]).parts if len(command) > 1 else ()
        name = f"stub of {parts[-3]}" if len(parts) >= 3 else "stub"
    elif "images.decoder" in command:
        name = "decoder"
    elif words and words[0] in {"serve", "gateway", "ui"} and not is_command:
        name = f"plurum {words[0]}" + (" with TLS" if "--tls-cert" in words else "")
    else:
        name = "commands" if words or is_command else "others"
    return name


def _raise(most: dict[str, int], name: str, value: int) -> None:
    most[name] = max(most.get(name, 0), value)


def _is_open(path: Path, root: Path) -> bool:
    """Return True if another user could read a file, by its mode and those of the folders below `root`."""
    if not path.stat().st_mode & 0o004:
        return False
    below = path.relative_to(root).parents if path.is_relative_to(root) else ()
    return all((root / one).stat().st_mode & 0o001 for one in below)
