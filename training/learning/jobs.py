"""Run jobs in parallel, each in a separate process."""

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

__all__ = ["ParallelJob", "run_in_parallel"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParallelJob:
    """Function call for a separate process.

    Attributes:
        name: Name in messages.
        work: Function of a module, called with the slot's number, `arguments` and a progress callback.
        arguments: Arguments that can be pickled.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]


def run_in_parallel(jobs: Sequence[ParallelJob], at_once: int, progress: Callable[[int, str], None]) -> None:
    """Run all `jobs`, at most `at_once` at a time, each in a process that ends with this one.

    Args:
        jobs: Jobs in the order in which they start.
        at_once: Number of slots, from 0; each running job has one.
        progress: Called with the progress of the jobs.

    Raises:
        PlurumError: a job raised it, or its process exited; the other jobs are stopped.
    """
    waiting, running = list(jobs), dict[Connection, tuple[int, ParallelJob, SpawnProcess]]()
    try:
        while waiting or running:
            for slot in sorted(set(range(at_once)) - {slot for slot, *_ in running.values()}):
                if waiting:
                    job = waiting.pop(0)
                    running.update([_start_process(job, slot)])
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
                            f"{job.name}: its process exited with code {process.exitcode}; is there enough memory? Run "
                            f"the same command again to resume"
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


def _start_process(job: ParallelJob, slot: int) -> tuple[Connection, tuple[int, ParallelJob, SpawnProcess]]:
    # Spawn, because CUDA and OpenMP do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    level = logging.getLogger("plurum").getEffectiveLevel()
    process = context.Process(target=_run_in_process, args=(job, slot, theirs, level), name=job.name, daemon=True)
    process.start()
    theirs.close()
    return ours, (slot, job, process)


def _run_in_process(job: ParallelJob, slot: int, connection: Connection, level: int) -> None:
    # Ctrl-C reaches the parent too, which then terminates this process; ignoring it here avoids a second traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("plurum").setLevel(level)

    def tell(count: int, note: str) -> None:
        try:
            connection.send((count, f"{job.name}: {note}" if note else ""))
        except BrokenPipeError:
            # The parent process was killed.
            raise SystemExit(1) from None

    try:
        job.work(slot, *job.arguments, tell)
    except PlurumError as error:
        connection.send(error)
