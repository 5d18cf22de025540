"""The learning rate over a training, and the cycles it is cut into."""

from __future__ import annotations

import math

from plurum.training.settings import TrainSettings

__all__ = ["cycle_ends", "learning_rate_at"]


def cycle_ends(settings: TrainSettings) -> tuple[int, ...]:
    """Return the last epoch of each cycle, from 1; there are as many cycles as snapshots, as even as can be."""
    return tuple(settings.epochs * cycle // settings.snapshots for cycle in range(1, settings.snapshots + 1))


def learning_rate_at(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Return the learning rate of `step`, from 0: a line up to its full value, then half a cosine down.

    With several snapshots each cycle starts at the full value again (Loshchilov & Hutter, arXiv 1608.03983; Huang et
    al., arXiv 1704.00109); the first alone begins with the line.
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
