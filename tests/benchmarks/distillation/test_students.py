"""The comparison of students: its images do not overlap, and a second run reuses the first one's stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.claims.distillation.__main__ import distillation
from plurum.benchmarks.tools import fashion as fashion_files
from plurum.benchmarks.tools.fashion import write_material
from plurum.errors import DataError
from tests.training.data_files import write_mnist


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with 400 different training images, whose first pixels are their number, and 60 test images."""
    monkeypatch.setattr(fashion_files, "_VALIDATION", 200)
    numbers = np.arange(460)
    images = np.zeros((len(numbers), 8, 8), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    images[:, 2:, :4][numbers % 2 == 1] = 255
    labels = (numbers % 2).astype(np.uint8)
    write_mnist(
        tmp_path / "fashion",
        {
            "train_images": images[:400],
            "train_labels": labels[:400],
            "test_images": images[400:],
            "test_labels": labels[400:],
        },
    )
    return tmp_path / "fashion"


def test_labelled_and_unlabelled_images_are_different(fashion: Path, tmp_path: Path) -> None:
    archive, folder = write_material(fashion, tmp_path / "work", 120, 60)
    assert folder is not None
    with np.load(archive) as arrays:
        assert [len(arrays[f"{part}_images"]) for part in ("train", "val", "test")] == [120, 200, 60]
        seen = {image.tobytes() for part in ("train", "val") for image in arrays[f"{part}_images"]}
    more = {np.asarray(Image.open(file)).tobytes() for file in folder.iterdir()}
    assert (len(seen), len(more), len(seen & more)) == (320, 60, 0)
    with pytest.raises(DataError, match="--unlabelled: expected at most 80, got 81"):
        write_material(fashion, tmp_path / "other", 120, 81)


@pytest.mark.slow
def test_students_are_compared_on_the_test_images(
    fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- students -->\n<!-- /students -->\n")

    def run() -> dict[str, Any]:
        distillation(fashion, tmp_path / "work", 120, 60, 1, 1, page)
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    found = run()
    assert set(found["cases"]) == {"120 training images", "and 60 images without labels"}
    (alone,), (more,) = found["cases"].values()
    assert alone["images"] == {"labelled": 120, "unlabelled": 0}
    assert more["images"] == {"labelled": 120, "unlabelled": 60}
    assert alone["student"]["images"] == alone["labels"]["images"] == 60
    assert found["vote_on_training_images"]["images"] == 120
    assert found["images_per_s"].keys() == {"vote", "student"}
    table = page.read_text().splitlines()[1:-1]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| vote",
        *("| on labels, seed 0", "| **student**, 120 training images, seed 0"),
        *("| on labels, seed 0", "| **student**, and 60 images without labels, seed 0"),
    ]
    assert f" | {alone['student']['nll']:.4f} | " in table[4]
    assert run()["cases"] == found["cases"]
