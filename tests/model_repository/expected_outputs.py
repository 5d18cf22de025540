"""Outputs that the served models owe for a verdict."""

from __future__ import annotations

from plurum.predictions.arrays import Floats
from plurum.voting import Verdict

__all__ = ["float_outputs"]


def float_outputs(verdict: Verdict) -> dict[str, Floats]:
    """Return the outputs of type float32 by name, `[images, ...]` each."""
    return {
        "PROBABILITIES": verdict.probabilities,
        "ENTROPY": verdict.entropy[:, None],
        "DISAGREEMENT": verdict.disagreement[:, None],
        "STD": verdict.std,
        "MEMBER_PROBABILITIES": verdict.member_probabilities,
    }
