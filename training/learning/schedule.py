"""Learning-rate schedule of a training, and its cycles."""

from __future__ import annotations

import math

from plurum.settings.training import TrainSettings

__all__ = ["cycle_ends", "learning_rate_at"]


def cycle_ends(settings: TrainSettings) -> tuple[int, ...]:
    """Return the last epoch of each cycle, counted from 1; there is one cycle per snapshot, of about equal length."""
    return tuple(settings.epochs * cycle // settings.snapshots for cycle in range(1, settings.snapshots + 1))


def learning_rate_at(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Return the learning rate of `step`, counted from 0: a linear warm-up, then half a cosine down.

    With several snapshots, each cycle restarts at the full value (Loshchilov & Hutter, arXiv 1608.03983; Huang et al.,
    arXiv 1704.00109); only the first has a warm-up.
    """
    warmup = round(settings.warmup_share * settings.epochs * steps_per_epoch / settings.snapshots)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    start = warmup
    for end in (epoch * steps_per_epoch for epoch in cycle_ends(settings)):
        if step < end:
            return settings.learning_rate * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2
        start = end
    return 0.0
