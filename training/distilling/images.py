"""Images that a student learns from: the training images of a run, and images without labels."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plurum.files import atomic_folder
from plurum.run import Run
from plurum.training.data.examples import Examples
from plurum.training.data.unlabelled import digest_image, read_unlabelled

__all__ = ["StudentImages", "share_data", "student_images"]


@dataclass(frozen=True)
class StudentImages:
    """Images that a student learns from.

    Attributes:
        examples: Images; those without labels are training images of class -1.
        unlabelled: Number of images without labels.
        left_out: Number of further ones, which the run holds out.
    """

    examples: Examples
    unlabelled: int = 0
    left_out: int = 0


def student_images(run: Run, unlabelled: Path | None) -> StudentImages:
    """Return the images of a student of the run.

    Args:
        run: Run of the teacher.
        unlabelled: Folder or .csv file of images without labels; None without any.

    Raises:
        DataError: an image can't be read, or is of a patient that the run has.
    """
    examples = Examples.of(run)
    if unlabelled is None:
        return StudentImages(examples)
    found = read_unlabelled(run, unlabelled).pixels
    held_out = np.setdiff1d(np.arange(len(examples.labels)), examples.train)
    unseen = {digest_image(examples.pixels[row]) for row in held_out}
    more = found[[digest_image(image) not in unseen for image in found]]
    with_more = replace(
        examples,
        pixels=np.concatenate([examples.pixels, more]),
        labels=np.append(examples.labels, np.full(len(more), -1, dtype=np.int64)),
        train=np.append(examples.train, len(examples.labels) + np.arange(len(more))),
        fingerprint="",
    )
    return StudentImages(with_more, len(more), len(found) - len(more))


def share_data(teacher: Run, run: Run) -> None:
    """Give a student's run the data folder of its teacher's, by hard links where the file system has them."""
    if run.data_folder.is_dir():
        return
    with atomic_folder(run.data_folder, private=True) as folder:
        for file in teacher.data_folder.iterdir():
            try:
                os.link(file.resolve(), folder / file.name)
            except OSError:
                shutil.copyfile(file, folder / file.name)
