"""Whether Triton answers: asked, not believed. Triton 2.51 says ready while a model's process is dead.

An answer to anybody's request is as good as one to a question of ours; we ask only while nobody else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import grpc.aio

from plurum.serving.gateway.deadlines import Deadline
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.settings import GatewaySettings
from plurum.serving.gateway.triton import ENSEMBLE, Served, Triton, known_question

__all__ = ["Health"]

_log = logging.getLogger(__name__)

# How often a Triton that is away is looked for.
_LOOK_S = 0.1
# These share every step but the first: an answer of the first shows that all of them work.
_SHOWN_BY_ENSEMBLE = "ensemble_pixels"


class Health:
    """What is known of one Triton.

    Attributes:
        served: What it says of its ensemble; None until it has said so.
    """

    def __init__(self, triton: Triton, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self.served: Served | None = None
        self._triton = triton
        self._settings = settings
        self._metrics = metrics
        self._answering = asyncio.Event()
        self._went_at = time.monotonic()
        # None until the first look.
        self._here: bool | None = None
        self._was_here = False
        self._answered_at: dict[str, float] = {}
        self._questions: dict[str, asyncio.Task[Any]] = {}
        self._check: asyncio.Task[None] | None = None
        self._doubted = asyncio.Event()

    @property
    def answering(self) -> bool:
        """Whether the last question, ours or anybody's, was answered in time."""
        return self._answering.is_set()

    def answered(self, model: str) -> None:
        """Take note of an answer to somebody's request."""
        self._answered_at[model] = time.monotonic()

    async def watch(self) -> None:
        """Look again and again, sooner while Triton is away; for a task of its own."""
        while True:
            try:
                await self.check()
            except Exception:
                # A defect of ours must not look like health.
                _log.exception("Triton can't be asked")
                self._gone("it can't be asked")
            self._doubted.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), self._settings.question_s if self.answering else _LOOK_S)

    async def check(self, *, anew: bool = False) -> bool:
        """Look now, together with whoever else wants to know; return whether Triton answers.

        Args:
            anew: Whether an answer of a moment ago is not good enough.
        """
        if self._check is None or self._check.done():
            if anew:
                self._answered_at.clear()
            self._check = asyncio.create_task(self._look())
        # Whoever waits may be cancelled; the look goes on.
        await asyncio.shield(self._check)
        return self.answering

    async def back(self, deadline: Deadline) -> bool:
        """Wait until Triton answers again, and return whether it does before `deadline` or before hope is lost."""
        self._gone("a request was lost")
        self._doubted.set()
        return await self.here(deadline)

    async def here(self, deadline: Deadline) -> bool:
        """Return whether Triton answers, after waiting for it until `deadline` or until hope is lost."""
        patience_s = self._went_at + self._settings.away_s - time.monotonic()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answering.wait(), max(0.0, min(patience_s, deadline.left_s)))
        return self.answering

    async def finish(self) -> None:
        """Wait for questions of ours that are still unanswered, not for ever."""
        if pending := [question for question in self._questions.values() if not question.done()]:
            await asyncio.wait(pending, timeout=self._settings.answer_s)

    async def _look(self) -> None:
        try:
            self.served = await self._triton.served()
            for model in self.served.models:
                await self._ask(model, self.served)
        except grpc.aio.AioRpcError as error:
            # Triton's own "not now": it lives, and has better to do than to answer us.
            busy = (
                error.code() == grpc.StatusCode.UNAVAILABLE and self._triton.connected and await self._takes_requests()
            )
            if busy and self._here is None:
                # Requests wait for the first look.
                self._came()
            elif not busy:
                self._gone(error.details() or error.code().name)
        except (TimeoutError, ValueError) as error:
            self._gone(str(error))
        else:
            self._came()

    async def _ask(self, model: str, served: Served) -> None:
        """Ask `model` the known question, unless it has answered one lately.

        Raises:
            TimeoutError: there was no answer in time, neither to this question nor to anybody's.
        """
        asked_at = time.monotonic()
        if (
            max(self._last(model), self._last(ENSEMBLE) if model == _SHOWN_BY_ENSEMBLE else 0)
            > asked_at - self._settings.question_s
        ):
            return
        question = self._questions.get(model)
        # One at a time: a question that is still unanswered is waited for again, as it must not be cancelled.
        if question is None:
            question = self._questions[model] = asyncio.ensure_future(self._triton.infer(known_question(model, served)))
        await asyncio.wait({question}, timeout=self._settings.answer_s)
        if question.done():
            del self._questions[model]
            question.result()
            self.answered(model)
        elif self._last(model) < asked_at:
            raise TimeoutError(f"{model} has not answered a question within {self._settings.answer_s:g} s")

    def _last(self, model: str) -> float:
        return self._answered_at.get(model, 0.0)

    async def _takes_requests(self) -> bool:
        try:
            return await self._triton.is_ready(ENSEMBLE)
        except grpc.aio.AioRpcError:
            return False

    def _came(self) -> None:
        if self._here:
            return
        self._here = True
        _log.log(logging.WARNING if self._was_here else logging.INFO, "Triton answers")
        if self._was_here:
            self._metrics.returns.inc()
        self._was_here = True
        self._metrics.ready.set(1)
        self._answering.set()

    def _gone(self, reason: str) -> None:
        if self._here is False:
            return
        self._here = False
        _log.warning("Triton does not answer: %s", " ".join(reason.split())[:300])
        self._answered_at.clear()
        self._went_at = time.monotonic()
        self._metrics.ready.set(0)
        self._answering.clear()
