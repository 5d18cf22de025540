"""Metadata of outlier tests for tests."""

from __future__ import annotations

from typing import Any

from tests.sample_runs.member_samples import SHA

__all__ = ["outliers"]


def outliers(**changes: object) -> dict[str, Any]:
    """Return the key `outliers` of an ensemble.json: two members, of which the first has no detector."""
    return {
        "alpha": 0.3,
        "members": [False, True],
        "detectors": [None, SHA],
        "weights": [0.0, 1.0],
        "reference": [-1.5, 0.0, 0.25, 2.0],
        "counts": None,
        "patients": 4,
        "split": "calibration",
    } | changes
