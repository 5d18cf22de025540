"""Train one model in several processes, as started by `torchrun`, or in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ALONE", "ProcessGroup", "join_processes"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class ProcessGroup:
    """Group of processes that train together.

    Attributes:
        rank: Rank of this process, from 0; the first process writes all files.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes files and messages."""
        return self.rank == 0

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this process's part of `rows`."""
        return rows[self.rank :: self.size]

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            distributed.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` wrapped such that gradients are averaged over all processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def synchronise_buffers(self, model: nn.Module) -> None:
        """Copy the first process's buffers to all processes; running means differ, as each has its own images."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def gather(self, part: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.float64]:
        """Return `[rows, …]`, gathered from each process's values for its `share`."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        whole = np.empty((rows, *part.shape[1:]))
        for rank, theirs in enumerate(parts):
            whole[rank :: self.size] = theirs
        return whole

    def broadcast(self, value: _T) -> _T:
        """Return the first process's `value`."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values


ALONE = ProcessGroup()


@contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """Join the process group that `torchrun` started, if any, and leave it at the end of the block.

    `torchrun` sets the environment variables WORLD_SIZE, RANK and LOCAL_RANK. Each process uses the CUDA device of its
    local rank (NCCL), or the CPU if there is no CUDA device (Gloo).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
