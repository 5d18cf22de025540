"""Exports that trace each module once in all tests, because tracing is most of what a small export costs."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from plurum.export.graphs import joining, member
from plurum.onnx_graphs.export import onnx_from_module
from tests.sample_runs.build_once import build_once

__all__ = ["traced_once"]


@contextmanager
def traced_once(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let exports in the block copy the graph of a module that was traced with the same weights and attributes."""

    def copied(
        module: nn.Module, samples: tuple[Tensor, ...], path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        def trace(out: Path) -> None:
            onnx_from_module(module, samples, out, inputs, outputs)

        shapes = [(tuple(one.shape), str(one.dtype)) for one in samples]
        digest = hashlib.sha256()
        for part in (shapes, inputs, outputs, module.eval()):
            _add(digest, part)
        shutil.copyfile(build_once(factory, f"{digest.hexdigest()}.onnx", trace), path)

    with pytest.MonkeyPatch.context() as patch:
        for package in (joining, member):
            patch.setattr(package, "onnx_from_module", copied)
        yield


def _add(digest: hashlib._Hash, value: object) -> None:
    """Add all that a value holds to a digest."""
    digest.update(f"{type(value).__module__} {type(value).__qualname__} ".encode())
    if isinstance(value, Tensor):
        _add(digest, value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    elif isinstance(value, dict):
        for name, one in value.items():
            digest.update(f"{name} ".encode())
            _add(digest, one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _add(digest, one)
    elif isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
        _add(digest, vars(value))
    else:
        # Functions have no state here, so their addresses don't matter.
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode())
