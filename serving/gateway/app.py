"""The paths of a gateway, and what happens behind each."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Scope

from plurum import __version__
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.asking import Asking
from plurum.serving.gateway.connections.door import Door
from plurum.serving.gateway.connections.keys import Keys
from plurum.serving.gateway.deadlines import Deadline, is_bulk, stated_s
from plurum.serving.gateway.health import Health
from plurum.serving.gateway.messages.answers import predictions_from_response
from plurum.serving.gateway.messages.bodies import Bodies, uploads_from_body
from plurum.serving.gateway.messages.forms import Upload
from plurum.serving.gateway.messages.kserve import Question, body_from_response, question_from_body, question_from_raw
from plurum.serving.gateway.messages.tensors import check_image
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError, away
from plurum.serving.gateway.settings import GatewaySettings
from plurum.serving.gateway.triton import ENSEMBLE, PUBLIC, Served, Triton, image_request

__all__ = ["gateway_app"]

_JSON_SIZE = "inference-header-content-length"
# Files of a form by this name are answered with a list, however many there are.
_LISTED = "files"
Answer = dict[str, Any]


def gateway_app(settings: GatewaySettings, keys: Keys | None, metrics: GatewayMetrics) -> Door:
    """Return the whole application, for an ASGI server with lifespan."""
    gateway = _Gateway(settings, metrics)
    routes = [
        Route("/predict", gateway.predict, methods=["POST"]),
        Route("/v2/models/{model}/infer", gateway.infer, methods=["POST"]),
        Route("/v2", gateway.server),
        Route("/v2/health/live", gateway.live),
        Route("/v2/health/ready", gateway.ready),
        Route("/v2/models/{model}", gateway.model),
        Route("/v2/models/{model}/config", gateway.config),
        Route("/v2/models/{model}/ready", gateway.model_ready),
    ]
    router = Router(routes, redirect_slashes=False, lifespan=gateway.lifespan)
    return Door(router, keys, metrics, gateway, access_log=settings.access_log)


class _Gateway:
    """The endpoints; their names are the routes of metrics."""

    _admission: Admission
    _health: Health
    _asking: Asking

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._bodies = Bodies(settings.max_body_bytes, settings.max_buffered_mib << 20)
        self._asks = {"/predict": self.predict, **{f"/v2/models/{model}/infer": self.infer for model in PUBLIC}}

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Hold the connection to Triton, and watch it."""
        settings = self._settings
        triton = Triton(settings.triton)
        self._admission = Admission(settings.max_in_flight, settings.max_waiting, settings.longest_wait_s)
        self._metrics.watch(self._admission, lambda: self._bodies.held_bytes)
        self._health = Health(triton, settings, self._metrics)
        self._asking = Asking(triton, self._health, self._admission, self._metrics)
        watch = asyncio.create_task(self._health.watch())
        try:
            yield
        finally:
            await self._asking.finish(settings.drain_s)
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            await self._health.finish()
            await triton.close()

    @property
    def full(self) -> bool:
        """Whether no request can be answered without waiting."""
        return self._admission.full

    def look(self, scope: Scope, headers: Headers) -> None:
        """Refuse a POST request by its head, if what there is to be done for it would end with that.

        Raises:
            RefusalError: there is no place for it, nor one to wait for; or its deadline is none.
        """
        endpoint = self._asks.get(scope["path"])
        if endpoint is not None:
            scope["endpoint"] = endpoint
            self._admission.check(self._deadline(headers))

    async def predict(self, request: Request) -> Response:
        """Answer one image with an object, several with a list in which each has an answer or an error of its own."""
        deadline = self._deadline(request.headers)
        # Before its body is read and taken apart.
        self._admission.check(deadline)
        async with self._bodies.read(request) as body:
            uploads = uploads_from_body(request.headers, body, self._settings.max_files)
            if len(uploads) == 1 and uploads[0].field != _LISTED:
                (answer,) = await self._predictions(request, uploads, deadline)
                return JSONResponse(answer)
            answers: list[Answer] = []
            size = (await self._served(deadline)).max_batch_size or 1
            for start in range(0, len(uploads), size):
                answers += await self._each(request, uploads[start : start + size], deadline, accepted=start > 0)
        return JSONResponse([{"file": one.name} | answer for one, answer in zip(uploads, answers, strict=True)])

    async def infer(self, request: Request) -> Response:
        """Answer a KServe v2 request."""
        model = _public(request)
        deadline = self._deadline(request.headers)
        self._admission.check(deadline)
        async with self._bodies.read(request) as body:
            question = await self._question(request, model, body, deadline)
            deadline = deadline.sooner(question.timeout_s)
            response = await self._asking.ask(question.request, deadline, request.is_disconnected)
        content, json_size = body_from_response(response, question)
        if json_size is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_JSON_SIZE: str(json_size)})

    async def _question(self, request: Request, model: str, body: bytearray, deadline: Deadline) -> Question:
        json_size, request_id = request.headers.get(_JSON_SIZE), request.scope["visit"].id
        if json_size == "0":
            return question_from_raw(model, body, await self._served(deadline, model), request_id)
        return question_from_body(model, body, json_size, request_id)

    async def server(self, _: Request) -> Response:
        """Say who answers; not which Triton stands behind."""
        return JSONResponse({"name": "plurum-gateway", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Say that this process runs."""
        return Response(status_code=200)

    async def ready(self, _: Request) -> Response:
        """Say whether Triton has answered a question lately."""
        if not self._health.answering:
            raise away()
        return Response(status_code=200)

    async def model(self, request: Request) -> Response:
        """Describe a public model."""
        name = _public(request)
        metadata = (await self._served(self._deadline(request.headers), name)).models[name]
        described: Answer = {"name": name, "versions": list(metadata.versions), "platform": "ensemble"}
        for kind in ("inputs", "outputs"):
            described[kind] = [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                for one in getattr(metadata, kind)
            ]
        return JSONResponse(described)

    async def config(self, request: Request) -> Response:
        """Say what a client needs of a model's config: names of classes and members, and how many images at once."""
        name = _public(request)
        served = await self._served(self._deadline(request.headers), name)
        contract = {"classes": served.classes, "members": [{"name": member} for member in served.members]}
        parameters = {"contract": {"string_value": json.dumps(contract)}}
        return JSONResponse({"name": name, "max_batch_size": served.max_batch_size, "parameters": parameters})

    async def model_ready(self, request: Request) -> Response:
        """Say the same as `ready`, of a model that is served."""
        name = _public(request)
        await self._served(self._deadline(request.headers), name)
        return await self.ready(request)

    def _deadline(self, headers: Headers) -> Deadline:
        settings = self._settings
        seconds = stated_s(headers.get("x-deadline-ms"), settings.deadline_s, settings.max_deadline_s)
        return Deadline.after(seconds, bulk=is_bulk(headers.get("x-priority")))

    async def _served(self, deadline: Deadline, model: str = ENSEMBLE) -> Served:
        """Return what is served, once that is known.

        Raises:
            RefusalError: Triton has not said so, or does not serve `model`.
        """
        if self._health.served is None:
            await self._health.back(deadline)
        if self._health.served is None:
            raise away()
        if model not in self._health.served.models:
            raise _unknown(model)
        return self._health.served

    async def _each(
        self, request: Request, uploads: list[Upload], deadline: Deadline, *, accepted: bool
    ) -> list[Answer]:
        """Return an answer or an error for each; where they are refused together, each is asked about alone."""
        try:
            return await self._predictions(request, uploads, deadline, accepted=accepted)
        except RefusalError as refusal:
            if refusal.reason != "malformed":
                raise
            if len(uploads) == 1:
                self._metrics.refused.labels(refusal.reason).inc()
                return [{"error": refusal.text}]
        return [answer for one in uploads for answer in await self._each(request, [one], deadline, accepted=True)]

    async def _predictions(
        self, request: Request, uploads: list[Upload], deadline: Deadline, *, accepted: bool = False
    ) -> list[Answer]:
        for one in uploads:
            check_image(one.data)
        question = image_request([one.data for one in uploads], request.scope["visit"].id)
        response = await self._asking.ask(question, deadline, request.is_disconnected, accepted=accepted)
        served = await self._served(deadline)
        try:
            return predictions_from_response(response, served)
        except ValueError:
            # Another release was put in place a moment ago, with other members.
            await self._health.check()
            try:
                return predictions_from_response(response, await self._served(deadline))
            except ValueError as error:
                raise RefusalError(500, "failed", f"Triton's answer can't be read: {error}") from error


def _public(request: Request) -> str:
    name: str = request.path_params["model"]
    if name not in PUBLIC:
        raise _unknown(name)
    return name


def _unknown(name: str) -> RefusalError:
    return RefusalError(404, "unknown", f"there is no model {name[:60]!r}, but perhaps {', '.join(PUBLIC)}")
