"""Images of a student: none that the run holds out, and what its loss sees of their labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plurum.run import Run
from plurum.training.data.examples import Examples
from plurum.training.distilling.images import share_data, student_images
from plurum.training.learning.architectures import model_from_arch
from plurum.training.learning.trainer import Trainer
from tests.sample_runs.trained_run import SETTINGS


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


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_a_loss_sees_labels_as_fractions_and_none_of_images_without_a_label(teacher: Run, mixup: float) -> None:
    examples, seen = Examples.of(teacher), list[torch.Tensor]()
    labels = examples.labels.copy()
    labels[examples.train[:30]] = -1

    def keep(images: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert len(images) == len(logits) == len(targets)
        seen.append(targets)
        return logits.square().sum()

    trainer = Trainer(SETTINGS.model_copy(update={"epochs": 1, "mixup": mixup}), loss=keep)
    model = model_from_arch("test_efficientnet", examples.classes, 0)
    trainer.fit(model, replace(examples, labels=labels), 0)
    targets = torch.cat(seen)
    counts = np.bincount(labels[examples.train[30:]], minlength=examples.classes)
    torch.testing.assert_close(targets.sum(dim=0), torch.from_numpy(counts).float())
    assert bool(((targets > 0) & (targets < 1)).any()) == bool(mixup)
    assert targets.sum(dim=1).max() <= 1 + 1e-6
