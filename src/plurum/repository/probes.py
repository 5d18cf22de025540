"""Probe images of a release and the predictions that its export recorded for them: REPO/questions.json.

Probe images are synthetic, not patients': noise of several grain sizes, always the same. An export records the
predictions of the artefacts right after they passed the parity checks. A server repeats the inferences before a
release becomes public, and compares.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import RepositoryError
from plurum.spec import Metadata, read_metadata

__all__ = ["PROBES_FILE", "RecordedProbes", "probe_images", "read_recorded_probes"]

PROBES_FILE = "questions.json"
# Rows and columns of the noise, before it is stretched to the image's size.
_GRAINS = (2, 5, 16, 64)


class RecordedProbes(Metadata):
    """Predictions that an export recorded for the probe images.

    Attributes:
        version: Version of this format.
        probabilities: Probabilities of the vote, `[images][classes]`, in the order of `probe_images`.
        tolerance: Largest allowed difference of a probability when served: the parity budget of the coarsest precision
            among the members, and at least 0.001, as processors differ.
    """

    version: int = 1
    probabilities: tuple[tuple[float, ...], ...]
    tolerance: float


def probe_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return deterministic noise images from coarse to fine, uint8 `[images, height, width, 3]`."""
    random = np.random.default_rng(0)
    images = []
    for grain in _GRAINS:
        noise = random.integers(0, 256, (min(grain, height), min(grain, width), 3), dtype=np.uint8)
        rows, columns = (
            np.arange(size) * cells // size for size, cells in zip((height, width), noise.shape, strict=False)
        )
        images.append(noise[rows][:, columns])
    return np.stack(images)


def read_recorded_probes(repository: Path) -> RecordedProbes:
    """Return the predictions that the export of `repository` recorded.

    Raises:
        RepositoryError: the file is missing or invalid.
    """
    fix = "; export it again with plurum export"
    return read_metadata(repository / PROBES_FILE, RecordedProbes, "a record of predictions", RepositoryError, fix)
