"""The claim about drift, small: digits, and few draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.benchmarks.claims.drift import CASES, draw_p_values, prepare_run
from plurum.errors import SettingsError


@pytest.mark.slow
def test_shifts_are_found_and_samples_without_one_seldom_alarm(tmp_path: Path) -> None:
    run = prepare_run("digits", tmp_path, ["test_resnet"], epochs=3, most=1797)
    p_values = draw_p_values(run, images=250, draws=10)
    alarms = {case: sum(value <= 0.05 for value in found) for case, found in p_values.items()}
    # Draws from so few images resemble each other; without a shift, five alarms of ten would still be less than one in
    # ten thousand tests at 5 %.
    assert alarms[CASES[0]] <= 4
    assert alarms[CASES[1]] >= 8
    with pytest.raises(SettingsError, match="--images: expected at most 628, the images of a split, got 700"):
        draw_p_values(run, images=700, draws=1)
