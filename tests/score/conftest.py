"""A repository of small members, and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cascades.linear_cascade import ENSEMBLES, PIXELS, write_members
from tests.sample_runs.build_once import build_once


@pytest.fixture(scope="session")
def linear_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository of a cascade of linear members, with its graphs by stage; read-only."""
    from plurum.export import repository_from_onnx

    ensemble = ENSEMBLES["three stages with detectors"]

    def build(folder: Path) -> None:
        folder.mkdir()
        repository_from_onnx(ensemble, write_members(folder, ensemble), folder / "repository", 8)

    return build_once(tmp_path_factory, "linear", build) / "repository"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Paths of images of 8 × 8 pixels."""
    (tmp_path / "scans").mkdir()
    paths = [tmp_path / "scans" / f"{place:02}.png" for place in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return list(map(str, paths))
