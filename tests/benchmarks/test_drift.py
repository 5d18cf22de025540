"""The claim about drift, small: digits, and few draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from plurum.benchmarks.claims.drift.draws import CASES, draw_p_values, prepare_run
from plurum.errors import SettingsError


@pytest.mark.slow
def test_shifts_are_found_and_samples_without_one_seldom_alarm(tmp_path: Path) -> None:
    run = prepare_run("digits", tmp_path, ["test_byobnet"], epochs=15, most=1797)
    p_values = draw_p_values(run, images=280, draws=10)
    alarms = {case: sum(value <= 0.05 for value in found) for case, found in p_values.items()}
    # Of ten tests at 5 %, four or more alarm with a probability of 0.1 %. The claim's 500 images find more mixes.
    assert alarms[CASES[0]] <= 3
    assert alarms[CASES[1]] >= 4
    assert alarms[CASES[2]] >= 9
    with pytest.raises(SettingsError, match="--images: expected at most 628, the images of a split, got 700"):
        draw_p_values(run, images=700, draws=1)
