"""Estimated waiting times, from the times of earlier requests."""

from __future__ import annotations

import asyncio

import pytest

from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.deadlines import RequestDeadline
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.wait_estimator import WaitEstimator


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def full(pace: WaitEstimator, places: int) -> None:
    for taken in range(places):
        pace.took(taken + 1)


def test_the_pace_is_averaged_over_bursts() -> None:
    clock = Clock()
    pace = WaitEstimator(4, clock)
    full(pace, 4)
    assert pace.expected_s(100) == 0
    for _ in range(8):
        clock.now += 2.0
        # A batch of four, each followed by one who waited.
        for _ in range(4):
            pace.left(4)
    assert pace.expected_s(10) == pytest.approx(5.0)
    # Others come one by one, long apart: that is not how long Triton takes.
    for taken in (3, 2, 1, 0):
        pace.left(taken)
    clock.now += 1000
    pace.took(1)
    pace.left(0)
    full(pace, 4)
    clock.now += 0.5
    pace.left(4)
    assert pace.expected_s(10) < 5.5


def test_a_request_that_would_miss_its_deadline_is_refused_at_once() -> None:
    async def scene() -> None:
        admission = Admission(1, 100, longest_s=1.0)
        await admission.enter(RequestDeadline.after(60))
        for _ in range(20):
            waiting = asyncio.create_task(admission.enter(RequestDeadline.after(60)))
            await asyncio.sleep(0.02)
            admission.leave()
            await waiting
        # About 20 ms each: this one and the one before it take 40.
        with pytest.raises(RefusalError, match="1 requests are in progress and 0 are waiting: a response would take"):
            await admission.enter(RequestDeadline.after(0.03))
        crowd = [asyncio.create_task(admission.enter(RequestDeadline.after(60))) for _ in range(60)]
        await asyncio.sleep(0)
        refused = [one for one in crowd if one.done()]
        assert 5 < len(refused) < 40
        assert all(isinstance(one.exception(), RefusalError) for one in refused)
        # Bulk requests have time, and started requests continue.
        others = [
            asyncio.create_task(admission.enter(RequestDeadline.after(60, bulk=True))),
            asyncio.create_task(admission.enter(RequestDeadline.after(0.01), accepted=True)),
        ]
        await asyncio.sleep(0)
        assert not any(one.done() for one in others)
        for one in [*crowd, *others]:
            one.cancel()
        await asyncio.gather(*crowd, *others, return_exceptions=True)

    asyncio.run(scene())
