"""Without a terminal, long commands tell their stage from time to time; short ones print nothing."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from plurum import progress
from plurum.progress import show_status


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
