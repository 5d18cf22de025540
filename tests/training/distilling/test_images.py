"""Images of a student: none that the run holds out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from plurum.run import Run
from plurum.training.distilling.images import share_data, student_images


def test_without_unlabelled_images_they_are_the_training_images(teacher: Run) -> None:
    images = student_images(teacher, None)
    np.testing.assert_array_equal(images.examples.train, teacher.table().rows("train"))
    assert (images.unlabelled, images.left_out) == (0, 0)


def test_unlabelled_images_that_the_run_holds_out_are_left_out(teacher: Run, tmp_path: Path) -> None:
    table, pixels = teacher.table(), teacher.pixels()
    new = 255 - np.array(pixels[table.rows("train")[:3]])
    held_out = [pixels[table.rows(split)[0]] for split in ("validation", "test")]
    for number, one in enumerate([*new, *held_out]):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    images = student_images(teacher, tmp_path)
    assert (images.unlabelled, images.left_out) == (3, 2)
    more = images.examples.train[len(table.rows("train")) :]
    np.testing.assert_array_equal(images.examples.pixels[more], new)
    assert (images.examples.labels[more] == -1).all()
    # Nothing that a model is chosen by has changed.
    np.testing.assert_array_equal(images.examples.validation, table.rows("validation"))
    assert len(images.examples.labels) == len(images.examples.pixels)


def test_a_student_keeps_the_data_when_the_teacher_is_gone(teacher: Run, tmp_path: Path) -> None:
    before = Run(shutil.copytree(teacher.path, tmp_path / "teacher"))
    run = Run(tmp_path / "student")
    share_data(before, run)
    shutil.rmtree(before.path)
    assert run.data() == teacher.data()
    assert run.table().splits == teacher.table().splits
    np.testing.assert_array_equal(run.pixels(), teacher.pixels())
