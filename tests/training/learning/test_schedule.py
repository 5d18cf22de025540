"""Learning rates and cycles of a training."""

from __future__ import annotations

import pytest

from plurum.errors import SettingsError
from plurum.training import TrainSettings, settings_from
from plurum.training.learning.schedule import cycle_ends, learning_rate_at


def test_the_learning_rate_rises_in_a_line_and_falls_by_a_cosine() -> None:
    settings = TrainSettings(archs=("a",), epochs=5, learning_rate=0.1, warmup_share=0.2)
    rates = [learning_rate_at(step, 10, settings) for step in range(50)]
    assert rates[:10] == pytest.approx([0.01 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[49] < 0.001
    assert learning_rate_at(0, 1, settings.model_copy(update={"epochs": 1})) == 0.1


def test_every_cycle_starts_at_the_full_rate_again() -> None:
    settings = TrainSettings(archs=("a",), epochs=7, snapshots=3, learning_rate=0.1, warmup_share=0.0)
    assert cycle_ends(settings) == (2, 4, 7)
    rates = [learning_rate_at(step, 10, settings) for step in range(70)]
    assert [step for step in range(70) if rates[step] == pytest.approx(0.1)] == [0, 20, 40]
    # Huang et al. 2017, equation 2, within each cycle.
    assert rates[10] == pytest.approx(0.05)
    assert rates[55] == pytest.approx(0.05)
    assert max(rates[19], rates[39], rates[69]) < 0.001


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"snapshots": 4, "epochs": 3}, "^--snapshots: expected at most 3, the number of --epochs, got 4"),
        ({"snapshots": 2, "patience": 3}, "^--patience: can't be combined with --snapshots"),
        ({"rotate": 200, "mixup": -1}, "--rotate: .*, got 200; --mixup: .*, got -1"),
        ({"balance": "both"}, "--balance: expected 'none', 'weights' or 'sampling', got 'both'"),
    ],
)
def test_contradictory_settings_give_one_line(values: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        settings_from(TrainSettings, archs=("a",), **values)
