"""The stages of a cascade, one after another, each for the images that the stage before has not settled.

A stage is a graph. It returns `LEAVE`, BOOL [batch, 1], true for each image that it settles, and tensors for the next
stage, which takes them as `NAME_BEFORE`.

The workers of `plurum score` use it. `plurum serve` puts it beside its backends, which run inside Triton's stub process
without Plurum: it requires only NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Stage", "Tensors", "run_stages"]

Tensors = dict[str, npt.NDArray[Any]]
# The graph of a stage: inputs by name, among others that it ignores → all outputs by name.
Stage = Callable[[Tensors], Tensors]
_LEAVE, _BEFORE = "LEAVE", "_BEFORE"


def run_stages(stages: Sequence[Stage], tensors: Tensors, is_full: Any, outputs: Sequence[str]) -> Tensors:
    """Return the outputs of a cascade by name: for each image, those of the stage that settled it.

    Args:
        stages: Graphs of the stages.
        tensors: Inputs of all stages by name.
        is_full: True for each image that runs through all stages, bool `[batch]`.
        outputs: Names of the outputs.
    """
    rows, answers = np.arange(len(is_full)), {}
    for stage in stages:
        found = stage(tensors)
        if len(rows) == len(is_full):
            answers = {name: found[name] for name in outputs}
        else:
            for name, answer in answers.items():
                answer[rows] = found[name]
        if _LEAVE not in found:
            break
        stays = ~found[_LEAVE][:, 0] | is_full[rows]
        if not stays.any():
            break
        made = {f"{name}{_BEFORE}": array for name, array in found.items() if name not in {_LEAVE, *outputs}}
        tensors = {name: array for name, array in tensors.items() if not name.endswith(_BEFORE)} | made
        if not stays.all():
            rows, tensors = rows[stays], {name: array[stays] for name, array in tensors.items()}
    return answers
