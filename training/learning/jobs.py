"""Work done side by side, in processes of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from plurum.errors import PlurumError

__all__ = ["Job", "run_side_by_side"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: In messages.
        work: A function of a module, called with a slot's number, `arguments` and a function to tell of progress.
        arguments: What can be pickled.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]


def run_side_by_side(jobs: Sequence[Job], at_once: int, progress: Callable[[int, str], None]) -> None:
    """Do all `jobs`, `at_once` of them at a time, each in a process that ends when this one does.

    Args:
        jobs: In the order in which they begin.
        at_once: How many; each of them has a slot, from 0, while it runs.
        progress: Is told what the jobs tell.

    Raises:
        PlurumError: what a job raised; the others are ended.
    """
    waiting, running = list(jobs), dict[Connection, tuple[int, Job, SpawnProcess]]()
    try:
        while waiting or running:
            for slot in sorted(set(range(at_once)) - {slot for slot, *_ in running.values()}):
                if waiting:
                    job = waiting.pop(0)
                    running.update([_started(job, slot)])
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)  # noqa: S101 - nothing else is waited for
                _, job, process = running[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    del running[connection]
                    process.join()
                    if process.exitcode:
                        raise PlurumError(
                            f"{job.name}: its process ended with {process.exitcode}; is there enough memory? With the "
                            f"same command the training goes on"
                        ) from None
                    continue
                if isinstance(message, PlurumError):
                    raise message
                progress(*message)
    finally:
        for connection, (_, _, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _started(job: Job, slot: int) -> tuple[Connection, tuple[int, Job, SpawnProcess]]:
    # Spawned: CUDA and OpenMP do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    level = logging.getLogger("plurum").getEffectiveLevel()
    process = context.Process(target=_in_process, args=(job, slot, theirs, level), name=job.name, daemon=True)
    process.start()
    theirs.close()
    return ours, (slot, job, process)


def _in_process(job: Job, slot: int, connection: Connection, level: int) -> None:
    # Ctrl-C reaches the parent too, which then ends us: two tracebacks would tell nobody more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("plurum").setLevel(level)

    def tell(count: int, note: str) -> None:
        try:
            connection.send((count, f"{job.name}: {note}" if note else ""))
        except BrokenPipeError:
            # Whoever started us is gone, without a word: killed.
            raise SystemExit(1) from None

    try:
        job.work(slot, *job.arguments, tell)
    except PlurumError as error:
        connection.send(error)
