"""Several processes that train one model together, as `torchrun` starts them, or one alone."""

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

__all__ = ["ALONE", "World", "joined"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """Who trains together.

    Attributes:
        rank: Of this process, from 0; the first one writes all files.
        size: How many processes there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of `rows` that are this process's."""
        return rows[self.rank :: self.size]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            distributed.barrier()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` such that its gradients become the mean over all processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def level(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: running means, which each has from its own images."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def together(self, part: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.float64]:
        """Return `[rows, …]`, put together from what each process has for its `share`."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        whole = np.empty((rows, *part.shape[1:]))
        for rank, theirs in enumerate(parts):
            whole[rank :: self.size] = theirs
        return whole

    def told(self, value: _T) -> _T:
        """Return the first process's `value`."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that `torchrun` started, if it did, for the time of a block.

    `torchrun` says so in the environment: WORLD_SIZE, RANK and LOCAL_RANK. Each process takes the CUDA device of its
    local rank where there are any (NCCL), and the CPU otherwise (Gloo).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
