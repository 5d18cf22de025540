"""Compare predictions over draws of training images and over test images.

Legend: losses and hits are float64 `[draws, images]`; draws share their test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plurum.benchmarks.tools.draws import estimate_over_draws
from plurum.figures import Estimate
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.statistics.calibration import fit_temperature
from plurum.voting import temper

__all__ = ["Scored", "score_draws"]


@dataclass(frozen=True)
class Scored:
    """Scores of one way of predicting.

    Attributes:
        losses: NLL of each test image in nats.
        hits: 1 where the most probable class is the true one, else 0.
    """

    losses: Floats
    hits: Floats

    def cells(self) -> tuple[str, str]:
        """Return the mean accuracy and NLL over draws and images, for a table."""
        return f"{self.hits.mean():.4f}", f"{self.losses.mean():.4f}"

    def figures(self, differences: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
        """Return the mean scores and the differences from other ways, for JSON."""
        plain = {name: {key: one.model_dump() for key, one in both.items()} for name, both in differences.items()}
        return {"accuracy": float(self.hits.mean()), "nll": float(self.losses.mean()), "differences": plain}

    def minus(self, other: Scored) -> dict[str, Estimate]:
        """Return the differences from another way in NLL and accuracy, with paired 95 % intervals."""
        return {
            "nll": estimate_over_draws(self.losses - other.losses),
            "accuracy": estimate_over_draws(self.hits - other.hits),
        }


def score_draws(draws: list[tuple[Floats, Ints, Floats, Ints]]) -> Scored:
    """Return the scores on test images, at the temperature that is best on the validation images of each draw.

    Args:
        draws: Probabilities `[images, classes]` and classes of validation images, then of test images, of each draw.
    """
    losses, hits = [], []
    for validation, validation_labels, test, test_labels in draws:
        tempered = temper(test, fit_temperature(validation, validation_labels))
        losses.append(compute_losses(tempered, test_labels))
        hits.append((tempered.argmax(axis=1) == test_labels).astype(np.float64))
    return Scored(np.stack(losses), np.stack(hits))
