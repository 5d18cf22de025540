"""Images for the repository of linear members."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cascades.linear_cascade import PIXELS


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Paths of images of 8 × 8 pixels."""
    (tmp_path / "scans").mkdir()
    paths = [tmp_path / "scans" / f"{place:02}.png" for place in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return list(map(str, paths))
