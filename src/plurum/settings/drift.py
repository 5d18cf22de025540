"""Settings of the two-sample test for drift."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from plurum.settings.options import Settings
from plurum.settings.training import Seed

__all__ = ["DriftSettings"]


class DriftSettings(Settings):
    """Settings of a test for drift.

    Attributes:
        alpha: Largest probability of a false alarm, over all outputs together.
        permutations: Random permutations of the patients between the two samples.
        seed: Random seed of the permutations.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    permutations: Annotated[int, Field(ge=100, le=10_000)] = 1000
    seed: Seed = 0

    @model_validator(mode="after")
    def _can_alarm(self) -> DriftSettings:
        if (smallest := 1 / (self.permutations + 1)) > self.alpha:
            raise ValueError(
                f"permutations: expected enough for an alarm at alpha {self.alpha:g}, got {self.permutations}, whose "
                f"smallest p-value is {smallest:.4f}"
            )
        return self
