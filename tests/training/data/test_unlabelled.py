"""Images without labels that certify: copies count once, and none is of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.errors import DataError
from plurum.run import Run
from plurum.training.data.unlabelled import read_unlabelled


def test_copies_certify_nothing_more(run: Run, tmp_path: Path) -> None:
    known = np.array(run.pixels()[:2])
    new = [255 - known[0], 255 - known[0], 255 - known[1], 255 - known[0]]
    for number, image in enumerate(new):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    assert read_unlabelled(run, tmp_path, are_new=True).groups.tolist() == [0, 0, 1, 0]
    manifest = tmp_path / "ward.csv"
    manifest.write_text("path,patient\n0.png,a\n1.png,b\n2.png,\n3.png,\n")
    assert read_unlabelled(run, manifest, are_new=True).groups.tolist() == [0, 1, 2, 3]
    Image.fromarray(known[1]).save(tmp_path / "known.png")
    with pytest.raises(
        DataError, match=r"--unlabelled: expected images that the run does not have, .*known\.png\. Leave"
    ):
        read_unlabelled(run, tmp_path, are_new=True)
    # A student may learn from training images again.
    assert len(read_unlabelled(run, tmp_path).pixels) == 5
