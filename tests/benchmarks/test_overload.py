"""Too many requests for a few seconds, and how they are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.benchmarks.claims.overload import Answer, outcome


def test_only_answers_of_the_overload_are_its_throughput() -> None:
    answers = [
        Answer(200, 10, 11),
        Answer(200, 11, 14.5),
        Answer(503, 11, 11.01),
        Answer(0, 12, 19),
        Answer(504, 12, 14),
    ]
    found = outcome(answers, start_s=10, seconds=4, deadline_s=2)
    assert found["sent"] == 5
    assert found["statuses"] == {"0": 1, "200": 2, "503": 1, "504": 1}
    # One came after the end, and late at that; one never came.
    assert found["accepted_per_s"] == 0.25
    assert found["beyond_deadline"] == 2
    assert found["longest_s"] == 7
    assert found["refused_ms"]["median"] == pytest.approx(1005)


@pytest.mark.triton
def test_every_request_is_answered_or_refused_and_nothing_breaks(repository: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "plurum.benchmarks.claims.overload",
        "--repository",
        str(repository),
        "--times",
        "10",
    ]
    done = subprocess.run(
        [*command, "--seconds", "4", "--peak-seconds", "2"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    over = report["overload"]
    assert over["sent"] == pytest.approx(4 * report["offered_per_s"], abs=1)
    assert set(over["statuses"]) <= {"200", "503", "504"}
    assert over["statuses"]["503"] > over["statuses"]["200"]
    assert sum(over["statuses"].values()) == over["sent"]
    assert over["beyond_deadline"] == 0
    assert report["faults"] == {}
    # Members this small cost less than the refusals do, which share the cores with them.
    assert report["share_of_peak"]["before"] > 0.1
    assert report["latency_back_s"] < 10
