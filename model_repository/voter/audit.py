"""Draw predictions for audit: at random, but the same for every client, server and way of asking.

Corrections of predictions that need review are a biased sample. An audit also looks at predictions that need none: each
patient, or each image of an unknown patient, is drawn with a stated probability by a keyed hash. The key is in the
repository, and clients don't see it, so that nobody knows beforehand what will be drawn.

Export copies this module into `voter/1` and `labels/1`, with `audit.json`: the rate, and the key as hexadecimal digits.
Requires only NumPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PARAMETER", "AuditDraw", "draw_from_folder", "patients_from_parameters"]

# Parameter of a request: a JSON list with the patient of each of its images; an empty text or null if unknown.
PARAMETER = "patients"
_DIGEST_BYTES = 8


class AuditDraw:
    """Decides which predictions are drawn.

    Args:
        rate: Probability of being drawn, 0 to 1.
        key: Key of the hash, 16 to 64 bytes.
    """

    def __init__(self, rate: float, key: bytes) -> None:
        self._key = key
        self._limit = int(rate * 256**_DIGEST_BYTES)

    def draw(self, pixels: Any, patients: Sequence[str]) -> Any:
        """Return AUDIT, bool `[batch, 1]`.

        Args:
            pixels: Images, uint8 `[batch, height, width, 3]`.
            patients: Patient of each image, an empty text if unknown; may be empty if all are unknown.
        """
        known = [*patients] if len(patients) == len(pixels) else [""] * len(pixels)
        subjects = (
            b"patient " + patient.encode("utf-8", "surrogatepass") if patient else b"image " + _bytes_of(image)
            for image, patient in zip(pixels, known, strict=True)
        )
        return np.array([[self._is_drawn(subject)] for subject in subjects], dtype=np.bool_).reshape(-1, 1)

    def _is_drawn(self, subject: bytes) -> bool:
        digest = hashlib.blake2b(subject, key=self._key, digest_size=_DIGEST_BYTES).digest()
        return bool(int.from_bytes(digest, "big") < self._limit)


def draw_from_folder(folder: Path) -> AuditDraw | None:
    """Return the draw that `audit.json` in `folder` states; None without this file."""
    path = folder / "audit.json"
    if not path.is_file():
        return None
    stated = json.loads(path.read_text(encoding="utf-8"))
    return AuditDraw(float(stated["rate"]), bytes.fromhex(stated["key"]))


def patients_from_parameters(parameters: str) -> list[str]:
    """Return the patients that a request's parameters name, given as JSON; empty if there are none or they are invalid.

    They come from clients: nothing in them may fail a request.
    """
    try:
        patients = json.loads(json.loads(parameters)[PARAMETER])
        return ["" if one is None else str(one).strip() for one in patients] if isinstance(patients, list) else []
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _bytes_of(image: Any) -> bytes:
    return np.ascontiguousarray(image, dtype=np.uint8).tobytes()
