"""A store with images, a manifest and a model repository, shared by all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.remote.s3_server import IMAGES, S3Server, serve_s3, use_server


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["path,label,patient"]
    for number in range(IMAGES):
        label = ("CE", "LAA")[number % 2]
        path = folder / "tiles" / label / f"ü {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        name = f"s3://data/tiles/{label}/ü {number}.png" if number < IMAGES // 2 else f"tiles/{label}/ü {number}.png"
        rows.append(f"{name},{label},p{number}")
    (folder / "tiles.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


# Not for the whole session: after a broken connection rclone may keep a core busy until it ends.
@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Server of the bucket `data`: a folder per class, and a manifest of its images."""
    folder = tmp_path_factory.mktemp("buckets")
    _write_images(folder / "data")
    with serve_s3(folder) as server:
        yield server


@pytest.fixture
def s3(store: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """The server, named in the environment; with a bucket of the test's own, `own`, and an empty cache."""
    use_server(monkeypatch, store.address, tmp_path / "cache")
    own = store.folder / "own"
    own.mkdir()
    yield store
    shutil.rmtree(own)
