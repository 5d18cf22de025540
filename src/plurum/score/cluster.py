"""A connection to Ray: to a cluster, or to a Ray of this process alone. Sends no usage statistics."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plurum.errors import InterruptedRunError, ServerError, needs_extra

__all__ = ["connect", "ray_errors"]

# Ray of this process: memory for objects that its workers exchange, which are only counts and patients' predictions.
_OBJECT_BYTES = 256 << 20
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it, a warning about GPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's own processes write warnings to standard error, such as about arguments of actors.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# Ray of this process: its servers listen on loopback only. Despite its name, the variable works on Linux as well.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Longest part of a message of Ray, letters.
_SHOWN = 300


@contextmanager
def connect(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to Ray, and yield its package; disconnect in the end.

    Args:
        address: Address of a cluster: `HOST:PORT`, `ray://HOST:PORT`, or `auto`. None starts Ray on this machine, on
            loopback only, and ends it.
        workers: Cores for Ray on this machine; None takes all.

    Raises:
        MissingExtraError: Ray is not installed.
        ServerError: there is no cluster at the address.
    """
    for name, value in (_SETTINGS | ({} if address else _ALONE)).items():
        os.environ.setdefault(name, value)
    with needs_extra("ray", "ray", "ray.data", "pyarrow"):
        import ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_BYTES}
        options |= {"address": "local", "num_cpus": workers or len(os.sched_getaffinity(0))}
    else:
        options["address"] = address
    try:
        with _without_stderr():
            ray.init(**options)
    # Ray raises errors of many kinds.
    except Exception as error:
        raise ServerError(f"--address: expected a Ray cluster, got {address}: {_first_line(error)}") from error
    try:
        _quieten(ray)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def ray_errors() -> Iterator[None]:
    """Turn errors of Ray into one line.

    Raises:
        InterruptedRunError: Ray, or a worker, failed.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise InterruptedRunError(f"Ray: {_first_line(error)}. Run the same command again to resume.") from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what Ray's library in C++ writes to standard error: that it has read its level of logging."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quieten(ray: Any) -> None:
    with warnings.catch_warnings():
        # Of its own settings.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Shuffles by tasks: those by hash start actors for each, which takes long on few cores.
    context.shuffle_strategy = "sort_shuffle_pull_based"
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_SHOWN]
