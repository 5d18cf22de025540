"""Metadata of members for tests."""

from __future__ import annotations

from typing import Any

__all__ = ["IMAGE", "SCORES", "SHA", "member"]

IMAGE = {"height": 32, "width": 24, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
SCORES = {"images": 40, "accuracy": 0.9, "nll": 0.3}
SHA = "0123456789abcdef" * 4


def member(name: str, **changes: object) -> dict[str, Any]:
    """Return the content of a member.json."""
    return {
        "name": name,
        "arch": "resnet10t",
        "sha256": SHA,
        "classes": ["CE", "LAA"],
        "image": dict(IMAGE),
        "parameters": 1000,
        "seed": 7,
        "precision": "bf16",
        "epochs": 3,
        "best_epoch": 2,
        "validation": SCORES,
    } | changes
