"""The comparisons of averages of weights and of views, on few images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.benchmarks.claims.averaging.__main__ import averaging
from plurum.benchmarks.claims.averaging.comparison import Scored, score_draws
from plurum.benchmarks.claims.averaging.trained import WAYS, AveragingStudy
from plurum.benchmarks.claims.averaging.views import VOTES, views
from plurum.benchmarks.tools.draws import estimate_over_draws
from plurum.training import load_data
from plurum.training.learning.resume import StateFile
from tests.training.data_files import digit_arrays, write_mnist


@pytest.mark.slow
def test_both_comparisons_write_their_tables_and_keep_members(report_of: Callable[..., Any], tmp_path: Path) -> None:
    write_mnist(tmp_path / "digits", digit_arrays())
    page = tmp_path / "page.md"
    page.write_text("<!-- weights -->\n<!-- /weights -->\n<!-- views -->\n<!-- /views -->\n")
    how: dict[str, Any] = {"images": 120, "epochs": 4, "draws": 2, "page": page}
    how |= {"work": tmp_path / "work", "fashion": tmp_path / "digits"}
    found = report_of(averaging, arch=["test_byobnet"], **how)["ways"]
    assert list(found) == [f"test_byobnet, {way}" for way in WAYS]
    # Each way has its own weights.
    assert len({one["nll"] for one in found.values()}) == len(WAYS)
    difference = found["test_byobnet, swa-half"]["differences"]["none"]["nll"]["value"]
    assert difference == pytest.approx(found["test_byobnet, swa-half"]["nll"] - found["test_byobnet, none"]["nll"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "fashion").iterdir()}
    votes = report_of(views, arch="test_byobnet", **how)["votes"]
    assert list(votes) == [f"{data}, {vote}" for data in ("Fashion-MNIST", "digits") for vote in VOTES]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    text = page.read_text()
    assert all(f"| `test_byobnet`, {way} |" in text for way in WAYS)
    assert "| digits, two members, mirrored too | 4 |" in text


@pytest.mark.slow
def test_an_interrupted_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits")
    whole, stopped = (AveragingStudy(tmp_path / name, data, 100, "test_byobnet", 4, flip=True) for name in "ab")
    write, epochs = StateFile.write, list[int]()

    def stop(self: StateFile, state: dict[str, Any]) -> None:
        write(self, state)
        epochs.append(state["epoch"])
        if epochs == [1, 2, 3]:
            raise KeyboardInterrupt

    expected = whole.outputs("swa-half", 0)
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            stopped.outputs("swa-half", 0)
        found = stopped.outputs("swa-half", 0)
    assert epochs == [1, 2, 3, 4]
    np.testing.assert_array_equal(found.test, expected.test)
    assert not (tmp_path / "b" / "unfinished").exists()


def test_an_interval_covers_draws_and_images() -> None:
    rng = np.random.default_rng(0)
    draws, images = rng.normal(size=(200, 5, 1)), rng.normal(size=(200, 1, 80))
    found = [estimate_over_draws(0.3 * draw + 2 * image) for draw, image in zip(draws, images, strict=True)]
    missed = np.mean([(one.low or 0.0) > 0 or (one.high or 0.0) < 0 for one in found])
    # 5 % are expected; 200 intervals miss at most 10 % by chance.
    assert 0 < missed < 0.1


def test_scores_use_the_temperature_of_validation_images() -> None:
    labels = np.array([0, 1, 0, 1])
    timid = np.array([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.6, 0.4]])
    scored = score_draws([(timid, labels, timid[:2], labels[:2])] * 2)
    assert scored.hits.tolist() == [[1, 1], [1, 1]]
    # Three of four are right, so the best temperature makes a confidence of 0.75.
    assert scored.losses == pytest.approx(-np.log(0.75), abs=1e-3)
    same = scored.minus(Scored(scored.losses, scored.hits))
    assert (same["nll"].value, same["nll"].low, same["nll"].high) == (0, 0, 0)
