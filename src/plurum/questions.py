"""What a release is asked before it becomes public, and what its export was answered: REPO/questions.json.

The questions are made-up images, no patient's: noise of several coarsenesses, the same always. Export has the artefacts
answer them where the gate has just passed them; whoever serves the release later asks again, and compares.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.errors import RepositoryError
from plurum.regular_files import read_regular
from plurum.spec import Contract

__all__ = ["QUESTIONS", "Recorded", "made_up_images", "read_recorded"]

QUESTIONS = "questions.json"
# Rows and columns of the noise, stretched to the image's size.
_GRAINS = (2, 5, 16, 64)


class Recorded(Contract):
    """The answers.

    Attributes:
        probabilities: Of the vote, `[images][classes]`, in the order of `made_up_images`.
        tolerance: How far a probability may be from these where the release is served: what the gate allows the
            coarsest precision among the members, and 0.001 at least, as processors differ.
    """

    version: int = 1
    probabilities: tuple[tuple[float, ...], ...]
    tolerance: float


def made_up_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return noise from coarse to fine, uint8 `[images, height, width, 3]`, the same always."""
    random = np.random.default_rng(0)
    images = []
    for grain in _GRAINS:
        noise = random.integers(0, 256, (min(grain, height), min(grain, width), 3), dtype=np.uint8)
        rows, columns = (
            np.arange(size) * cells // size for size, cells in zip((height, width), noise.shape, strict=False)
        )
        images.append(noise[rows][:, columns])
    return np.stack(images)


def read_recorded(repository: Path) -> Recorded:
    """Return what the export of `repository` was answered.

    Raises:
        RepositoryError: that is not recorded, or can't be read.
    """
    path = repository / QUESTIONS
    try:
        return Recorded.model_validate_json(read_regular(path))
    except (OSError, ValidationError) as error:
        raise RepositoryError(
            f"{path} does not say what its export was answered; export it again with plurum export"
        ) from error
