"""Batches of training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plurum.errors import SettingsError
from plurum.spec import ImageSpec
from plurum.training import TrainSettings
from plurum.training.data.examples import Batches, Examples

LABELS = np.array([0] * 90 + [1] * 10 + [0, 1])


def batches(parts: int = 1, seed: int = 0, images: int = 100, **values: Any) -> Batches:
    examples = Examples(
        pixels=np.zeros((len(LABELS), 8, 8, 3), dtype=np.uint8),
        labels=LABELS,
        train=np.arange(images),
        validation=np.array([100, 101]),
        classes=2,
        image=ImageSpec(height=8, width=8, mean=(0, 0, 0), std=(1, 1, 1)),
    )
    return Batches(examples, TrainSettings(archs=("a",), **values), seed, parts)


def test_an_epoch_sees_every_training_image_once_in_an_order_of_its_own() -> None:
    steps = batches(batch_size=32)
    first, second = (np.concatenate(list(steps.epoch(number))) for number in (1, 2))
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (np.concatenate(list(steps.epoch(1))) == first).all()
    assert (np.concatenate(list(batches(batch_size=32, seed=1).epoch(1))) != first).any()


@pytest.mark.parametrize(
    ("size", "accumulate", "parts", "sizes"),
    [
        (32, 1, 1, [32, 32, 32, 4]),
        (32, 2, 1, [64, 36]),
        (33, 1, 1, [33, 33, 33]),
        (33, 1, 2, [33, 33, 33]),
        (49, 2, 1, [98, 2]),
        (49, 2, 2, [98]),
        (500, 1, 1, [100]),
    ],
)
def test_no_step_is_too_small_to_normalise_by(size: int, accumulate: int, parts: int, sizes: list[int]) -> None:
    steps = batches(parts, batch_size=size, accumulate=accumulate)
    assert [len(rows) for rows in steps.epoch(1)] == sizes
    assert len(steps) == len(sizes)


def test_passes_have_at_least_the_requested_size() -> None:
    steps = batches(batch_size=16, accumulate=4)
    assert [[len(rows) for rows in steps.passes(step)] for step in steps.epoch(1)] == [[16] * 4, [18, 18]]
    step = next(steps.epoch(1))
    assert (np.concatenate(steps.passes(step)) == step).all()


def test_sampling_draws_all_classes_equally_often() -> None:
    drawn = np.concatenate([np.concatenate(list(batches(balance="sampling").epoch(number))) for number in range(40)])
    assert len(drawn) == 4000
    # Four binomial standard deviations.
    assert abs((LABELS[drawn] == 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert drawn.max() < 100


def test_weights_make_all_classes_count_the_same() -> None:
    weights = batches(balance="weights").weights
    assert weights == pytest.approx([100 / 180, 100 / 20])
    assert batches().weights.tolist() == [1.0, 1.0]


def test_batches_too_small_for_so_many_processes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"--batch-size: expected at least 4, .* for each of 2 processes, got 2"):
        batches(2, batch_size=2)
    assert len(batches(2, batch_size=4)) == 25
    assert len(batches(1, batch_size=2)) == 50


def test_too_few_images_for_so_many_processes_are_refused() -> None:
    with pytest.raises(SettingsError, match="3 training images are too few for 2 processes; start fewer"):
        batches(2, images=3)
