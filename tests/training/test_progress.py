"""Rate and time left of long work, and its progress in a log: few lines, each with what is done, or with the stage."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from plurum import progress
from plurum.progress import ProgressRate, show_status
from plurum.training.progress import show_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("training 2 of 3: resnet18 (fp32)", 600) as advance:
        for step in range(600):
            clock[0] += 0.25
            advance(1, f"epoch {step // 300 + 1} of 2" if step in {299, 599} else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 2 of 3: resnet18 (fp32): 120 of 600 steps, 4.0/s, 2 min 00 s left"
    assert lines[2] == "training 2 of 3: resnet18 (fp32): 360 of 600 steps, 4.0/s, 1 min 00 s left; epoch 1 of 2"
    # The command itself says that it is done.
    assert len(lines) == 4


def test_short_work_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("reading images", 50, "images") as advance:
        for _ in range(50):
            clock[0] += 0.5
            advance(1, "")
    assert capsys.readouterr() == ("", "")


def test_rate_and_time_left_are_in_words() -> None:
    pace = ProgressRate(total=10_000, started_s=100.0)
    pace.note(1200, 110.0)
    assert pace.summary(110.0) == "1,200 of 10,000 images, 120/s, 1 min 13 s left"
    pace.note(9999, 120.0)
    assert pace.summary(120.0).endswith(", 500/s, 0 s left")


def test_no_estimate_before_the_first_item() -> None:
    assert ProgressRate(total=5, started_s=1.0).summary(1.0) == "0 of 5 images, 0.0/s"


def test_hours_and_slow_rates_are_formatted() -> None:
    pace = ProgressRate(total=20_000, started_s=0.0)
    pace.note(25, 10.0)
    assert pace.summary(10.0) == "25 of 20,000 images, 2.5/s, 2 h 13 min left"


def test_old_rates_are_forgotten() -> None:
    pace = ProgressRate(total=1_000_000, started_s=0.0)
    for second in range(1, 601):
        pace.note(100 * second, float(second))
    # The server restarts: a minute without an answer, then it is twice as fast.
    for second in range(660, 760):
        pace.note(60_000 + 200 * (second - 660), float(second))
    assert 150 < pace.rate(759.0) <= 200


def wait_for_lines(error: io.StringIO, number: int) -> list[str]:
    deadline = time.monotonic() + 30
    while error.getvalue().count("\n") < number:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return error.getvalue().splitlines()


def test_each_long_stage_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_S", 0.01)
    error = io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    with show_status("training") as say:
        (first,) = wait_for_lines(error, 1)
        assert re.fullmatch(r"training \(after 0 min \d\d s\)", first)
        say("round 1 of 3")
        lines = wait_for_lines(error, 2)
    # A stage is told once.
    assert [line.partition(" (")[0] for line in lines] == ["training", "round 1 of 3"]
    assert not [thread for thread in threading.enumerate() if thread.name == "status"]


def test_a_short_command_prints_nothing_and_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), show_status("dividing"):
        _ = 1 / 0
    assert capsys.readouterr().err == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "status"]
