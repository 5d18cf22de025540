"""History of a member: writing, reading and plotting."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.errors import MetadataError
from plurum.run import Run
from plurum.training.learning.history import Epoch, plot_from_histories, read_history, write_history

HISTORY = tuple(Epoch(n, 1 / n, 1 - 1 / n, 0.5 / n, 1e-3 / n, 0.1, 812.5, 3.25) for n in range(1, 6))


def test_a_written_history_is_read_back(tmp_path: Path) -> None:
    write_history(tmp_path / "history.csv", HISTORY)
    assert read_history(tmp_path / "history.csv") == HISTORY


def test_the_history_of_a_trained_member_is_read(trained: Run) -> None:
    for member in trained.members():
        history = read_history(trained.member_folder(member.name) / "history.csv")
        assert member.best_epoch is not None
        assert member.validation is not None
        assert history[member.best_epoch - 1].validation_nll == member.validation.nll


@pytest.mark.parametrize("text", ["epoch,train_loss\n1,2\n", "epoch\nthree\n", None])
def test_a_file_that_is_not_a_history_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "history.csv").write_text(text)
    with pytest.raises(MetadataError, match=r"history.csv can't be read as a member's history"):
        read_history(tmp_path / "history.csv")


def test_the_plot_shows_every_training_and_its_best_epoch() -> None:
    one = np.asarray(Image.open(io.BytesIO(plot_from_histories({"a": HISTORY}, {"a": [5]}))))
    two = np.asarray(
        Image.open(io.BytesIO(plot_from_histories({"a": HISTORY, "b": HISTORY[:3]}, {"a": [5], "b": [2, 3]})))
    )
    orange = np.array([0xE6, 0x9F, 0x00])
    assert not (one[..., :3] == orange).all(axis=-1).any()
    assert (two[..., :3] == orange).all(axis=-1).sum() > 100
