"""Too many requests for a few seconds, and their figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.overload import TimedResponse, outcome, overload


def test_only_answers_of_the_overload_are_its_throughput() -> None:
    answers = [
        TimedResponse(200, 10, 11),
        TimedResponse(200, 11, 14.5),
        TimedResponse(503, 11, 11.01),
        TimedResponse(0, 12, 19),
        TimedResponse(504, 12, 14),
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
def test_every_request_is_answered_or_refused(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(overload, repository=repository, times=10.0, seconds=4.0, peak_seconds=2.0)
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
