"""Places, waiting, priorities and deadlines of requests."""

from __future__ import annotations

import asyncio

import pytest

from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.deadlines import RequestDeadline, is_bulk, stated_s
from plurum.serving.gateway.refusals import RefusalError
from tests.serving.gateway.gateways import run_scene

LONG = 60.0


def test_requests_wait_in_order_and_the_rest_are_refused() -> None:
    async def scene() -> None:
        admission, order = Admission(2, 2), []

        async def visit(name: str) -> None:
            await admission.enter(RequestDeadline.after(LONG))
            order.append(name)

        visits = [asyncio.create_task(visit(name)) for name in "abcd"]
        await asyncio.sleep(0)
        assert (order, admission.taken, admission.waiting) == (["a", "b"], 2, 2)
        with pytest.raises(RefusalError, match="2 requests are in progress and 2 are waiting") as refused:
            await admission.enter(RequestDeadline.after(LONG))
        assert (refused.value.status, refused.value.headers) == (503, {"x-plurum-refusal": "busy", "retry-after": "1"})
        # Started requests continue.
        started = asyncio.create_task(admission.enter(RequestDeadline.after(LONG), accepted=True))
        await asyncio.sleep(0)
        for _ in range(3):
            admission.leave()
        assert await started
        await asyncio.gather(*visits)
        assert (order, admission.taken, admission.waiting) == (list("abcd"), 2, 0)
        admission.leave()
        admission.leave()
        assert (admission.taken, await admission.enter(RequestDeadline.after(LONG))) == (0, False)

    run_scene(scene)


def test_bulk_requests_come_last_and_make_room() -> None:
    async def scene() -> None:
        admission, order = Admission(1, 2), []

        async def visit(name: str, *, bulk: bool) -> None:
            await admission.enter(RequestDeadline.after(LONG, bulk=bulk))
            order.append(name)

        await visit("first", bulk=True)
        visits = [asyncio.create_task(visit(name, bulk=True)) for name in ("early", "late")]
        await asyncio.sleep(0)
        urgent = asyncio.create_task(visit("urgent", bulk=False))
        with pytest.raises(RefusalError, match="1 requests are in progress and 2 are waiting"):
            await visits[1]
        # Neither a bulk request nor, where none waits, another one makes room.
        with pytest.raises(RefusalError, match="2 are waiting"):
            await visit("bulk", bulk=True)
        # Told before anything is done for it, too.
        with pytest.raises(RefusalError, match="2 are waiting"):
            admission.check(RequestDeadline.after(LONG, bulk=True))
        for _ in range(2):
            admission.leave()
            await asyncio.sleep(0.01)
        await asyncio.gather(urgent, visits[0])
        assert order == ["first", "urgent", "early"]
        admission.leave()
        admission.check(RequestDeadline.after(LONG))
        assert (admission.taken, admission.waiting) == (0, 0)

    run_scene(scene)
    assert [is_bulk(text) for text in (None, "interactive", "bulk")] == [False, False, True]
    with pytest.raises(RefusalError, match="X-Priority: expected bulk or interactive, got 'high'"):
        is_bulk("high")


def test_late_or_cancelled_requests_free_their_place() -> None:
    async def scene() -> None:
        admission = Admission(1, 5)
        await admission.enter(RequestDeadline.after(LONG))
        with pytest.raises(RefusalError, match="within the request's deadline of 10 ms"):
            await admission.enter(RequestDeadline.after(0.01))
        gone = asyncio.create_task(admission.enter(RequestDeadline.after(LONG)))
        called = asyncio.create_task(admission.enter(RequestDeadline.after(LONG)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert admission.waiting == 1
        # Given the place and gone in the same moment.
        admission.leave()
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called
        assert (admission.taken, admission.waiting) == (0, 0)

    run_scene(scene)


def test_earlier_deadline_holds() -> None:
    deadline = RequestDeadline.after(LONG)
    assert deadline.sooner(None) is deadline
    assert deadline.sooner(99) is deadline
    assert deadline.sooner(2).seconds == 2
    assert 1.9 < deadline.sooner(2).left_s <= 2
    assert RequestDeadline.after(-1).left_s == 0
    assert stated_s(None, 30, 120) == 30
    assert stated_s("1500", 30, 120) == 1.5
    assert stated_s("9e9", 30, 120) == 120


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1,5"])
def test_invalid_deadlines_are_refused(text: str) -> None:
    with pytest.raises(RefusalError, match="expected milliseconds above 0, got"):
        stated_s(text, 30, 120)
