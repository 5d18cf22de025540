"""Progress of long work in a log: few lines, each with what is done and what is left."""

from __future__ import annotations

import time

import pytest

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
