"""Predictions, images and files for tests."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from plurum.client import Prediction

__all__ = ["bomb", "png", "prediction", "touch"]


def prediction(label: str = "CE", confidence: float = 0.6, *, review: bool = True) -> Prediction:
    other = "LAA" if label == "CE" else "CE"
    probabilities = {name: confidence if name == label else 1 - confidence for name in ("CE", "LAA")}
    return Prediction(
        label=label,
        confidence=confidence,
        probabilities=probabilities,
        entropy=0.67,
        disagreement=0.1,
        std=dict.fromkeys(probabilities, 0.2),
        member_probabilities={"one": probabilities, "two": {label: 0.3, other: 0.7}},
        prediction_set=(label, other) if review else (label,),
        review=review,
    )


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (number, 40, 90)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return png(1)[:12] + header + struct.pack(">I", zlib.crc32(header)) + png(1)[33:]


def touch(folder: Path, *names: str) -> None:
    """Create empty files below a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
