"""Probabilities of a run's members, computed from its files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plurum.models import model_from_checkpoint
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax

__all__ = ["answers_of"]


def answers_of(run: Run, split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return members' probabilities `[images, members, classes]` and labels, computed from the files."""
    table = run.table()
    rows = np.flatnonzero(np.array(table.splits) == split)
    predictions = [
        softmax(predict_logits(model_from_checkpoint(member, run.checkpoint(member)), run.pixels(), rows, member.image))
        for member in run.members()
    ]
    return np.stack(predictions, axis=1), table.labels[rows]
