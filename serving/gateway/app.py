"""Routes and endpoints of the gateway."""

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
from plurum.conventions import FULL
from plurum.errors import ServerError
from plurum.predictions.prediction import predictions_from_tensors
from plurum.predictions.wire import tensors_from_response
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.connections.keys import Keys
from plurum.serving.gateway.connections.middleware import GatewayMiddleware
from plurum.serving.gateway.deadlines import RequestDeadline, is_bulk, stated_s
from plurum.serving.gateway.health import Health
from plurum.serving.gateway.inference import InferenceService
from plurum.serving.gateway.messages.bodies import Bodies, uploads_from_body
from plurum.serving.gateway.messages.forms import Upload
from plurum.serving.gateway.messages.kserve import (
    InferenceRequest,
    body_from_response,
    request_from_body,
    request_from_raw,
)
from plurum.serving.gateway.messages.tensors import check_image
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError, malformed, refusal
from plurum.serving.gateway.triton import ENSEMBLE, PUBLIC, ServedEnsemble, TritonConnection, image_request
from plurum.settings.serving import GatewaySettings
from plurum.spec import release_from_version

__all__ = ["gateway_app"]

_JSON_SIZE = "inference-header-content-length"
# A form field of this name always gets a list as its response, even for one file.
_LIST_FIELD = "files"
JsonObject = dict[str, Any]


def gateway_app(settings: GatewaySettings, keys: Keys | None, metrics: GatewayMetrics) -> GatewayMiddleware:
    """Return the ASGI application of the gateway; the ASGI server must support lifespan events."""
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
    return GatewayMiddleware(router, keys, metrics, gateway, access_log=settings.access_log)


class _Gateway:
    """The endpoints; their method names are the `route` labels of the metrics."""

    _admission: Admission
    _health: Health
    _inference: InferenceService

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._bodies = Bodies(settings.max_body_bytes, settings.max_buffered_mib << 20)
        self._posts = {"/predict": self.predict, **{f"/v2/models/{model}/infer": self.infer for model in PUBLIC}}

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open the connection to Triton, and watch it until shutdown."""
        settings = self._settings
        triton = TritonConnection(settings.triton)
        self._admission = Admission(settings.max_in_flight, settings.max_waiting, settings.longest_wait_s)
        self._metrics.watch(self._admission, lambda: self._bodies.held_bytes)
        self._health = Health(triton, settings, self._metrics)
        self._inference = InferenceService(triton, self._health, self._admission, self._metrics)
        watch = asyncio.create_task(self._health.watch())
        try:
            yield
        finally:
            await self._inference.finish(settings.drain_s)
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            await self._health.finish()
            await triton.close()

    @property
    def full(self) -> bool:
        """True if every further request would have to wait."""
        return self._admission.full

    def check_head(self, scope: Scope, headers: Headers) -> None:
        """Refuse a POST request by its head, before its body is read, if there is no place for it.

        Raises:
            RefusalError: all places and the queue are full, or the deadline header is invalid.
        """
        endpoint = self._posts.get(scope["path"])
        if endpoint is not None:
            scope["endpoint"] = endpoint
            self._admission.check(self._deadline(headers))

    async def predict(self, request: Request) -> Response:
        """Classify images: one image returns an object; several return a list of predictions or errors."""
        deadline = self._deadline(request.headers)
        _is_full(request)
        # Refuse before the body is read and parsed.
        self._admission.check(deadline)
        async with self._bodies.read(request) as body:
            uploads = uploads_from_body(request.headers, body, self._settings.max_files)
            if len(uploads) == 1 and uploads[0].field != _LIST_FIELD:
                (answer,) = await self._predictions(request, uploads, deadline)
                return JSONResponse(answer)
            answers: list[JsonObject] = []
            size = (await self._served(deadline)).max_batch_size or 1
            for start in range(0, len(uploads), size):
                answers += await self._each(request, uploads[start : start + size], deadline, accepted=start > 0)
        return JSONResponse([{"file": one.name} | answer for one, answer in zip(uploads, answers, strict=True)])

    async def infer(self, request: Request) -> Response:
        """Run a KServe v2 inference request."""
        model = _public(request)
        deadline = self._deadline(request.headers)
        self._admission.check(deadline)
        async with self._bodies.read(request) as body:
            inference = await self._parse_request(request, model, body, deadline)
            deadline = deadline.sooner(inference.timeout_s)
            response = await self._inference.run(inference.request, deadline, request.is_disconnected)
        content, json_size = body_from_response(response, inference)
        if json_size is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_JSON_SIZE: str(json_size)})

    async def _parse_request(
        self, request: Request, model: str, body: bytearray, deadline: RequestDeadline
    ) -> InferenceRequest:
        json_size, request_id = request.headers.get(_JSON_SIZE), request.scope["record"].id
        if json_size == "0":
            return request_from_raw(model, body, await self._served(deadline, model), request_id)
        return request_from_body(model, body, json_size, request_id)

    async def server(self, _: Request) -> Response:
        """Return the name and version of the gateway, without details of Triton."""
        return JSONResponse({"name": "plurum-gateway", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Return 200: this process runs."""
        return Response(status_code=200)

    async def ready(self, _: Request) -> Response:
        """Return 200 if Triton has recently completed an inference."""
        if not self._health.responds:
            raise refusal("away")
        return Response(status_code=200)

    async def model(self, request: Request) -> Response:
        """Describe a public model."""
        name = _public(request)
        metadata = (await self._served(self._deadline(request.headers), name)).models[name]
        described: JsonObject = {"name": name, "versions": list(metadata.versions), "platform": "ensemble"}
        for kind in ("inputs", "outputs"):
            described[kind] = [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                for one in getattr(metadata, kind)
            ]
        return JSONResponse(described)

    async def config(self, request: Request) -> Response:
        """Return the parts of a config that clients need: names, decisions, image spec and maximum batch size."""
        name = _public(request)
        served = await self._served(self._deadline(request.headers), name)
        names = {"name": served.ensemble, "classes": served.classes, "metadata_sha256": served.metadata_sha256}
        members = {"members": [{"name": member} for member in served.members]}
        parameters = {"contract": {"string_value": json.dumps(names | members | served.shown)}}
        return JSONResponse({"name": name, "max_batch_size": served.max_batch_size, "parameters": parameters})

    async def model_ready(self, request: Request) -> Response:
        """Return 200 if the model is served and Triton has recently completed an inference."""
        name = _public(request)
        await self._served(self._deadline(request.headers), name)
        return await self.ready(request)

    def _deadline(self, headers: Headers) -> RequestDeadline:
        settings = self._settings
        seconds = stated_s(headers.get("x-deadline-ms"), settings.deadline_s, settings.max_deadline_s)
        return RequestDeadline.after(seconds, bulk=is_bulk(headers.get("x-priority")))

    async def _served(self, deadline: RequestDeadline, model: str = ENSEMBLE) -> ServedEnsemble:
        """Return the description of the served ensemble; wait for it if necessary.

        Raises:
            RefusalError: Triton does not respond in time, or does not serve `model`.
        """
        if self._health.served is None:
            await self._health.wait_after_failure(deadline)
        if self._health.served is None:
            raise refusal("away")
        if model not in self._health.served.models:
            raise _unknown(model)
        return self._health.served

    async def _each(
        self, request: Request, uploads: list[Upload], deadline: RequestDeadline, *, accepted: bool
    ) -> list[JsonObject]:
        """Return a prediction or an error for each file; retry files one by one if they are refused together."""
        try:
            return await self._predictions(request, uploads, deadline, accepted=accepted)
        except RefusalError as refused:
            if refused.reason != "malformed":
                raise
            if len(uploads) == 1:
                self._metrics.refused.labels(refused.reason).inc()
                return [{"error": refused.text}]
        return [answer for one in uploads for answer in await self._each(request, [one], deadline, accepted=True)]

    async def _predictions(
        self, request: Request, uploads: list[Upload], deadline: RequestDeadline, *, accepted: bool = False
    ) -> list[JsonObject]:
        for one in uploads:
            check_image(one.data)
        images, patients = [one.data for one in uploads], [one.patient for one in uploads]
        wire = image_request(images, request.scope["record"].id, patients, full=_is_full(request))
        response = await self._inference.run(wire, deadline, request.is_disconnected, accepted=accepted)
        served = await self._served(deadline)
        try:
            return _json_from_response(response, served, len(uploads))
        except ServerError:
            # Another release, with other members, may just have become public.
            await self._health.check()
            try:
                return _json_from_response(response, await self._served(deadline), len(uploads))
            except ServerError as error:
                raise RefusalError(500, "failed", str(error)) from error


def _json_from_response(response: Any, served: ServedEnsemble, images: int) -> list[JsonObject]:
    """Return one object per image, with the fields of `Prediction`.

    Raises:
        ServerError: the response comes from another release, whose classes or members differ from those of `served`.
    """
    release, tensors = release_from_version(response.model_version), tensors_from_response(response)
    predictions = predictions_from_tensors(tensors, served.classes, served.members, images, release)
    return [one.to_dict() | {"ensemble": served.ensemble} for one in predictions]


def _is_full(request: Request) -> bool:
    """Return True if all members of a cascade are to run.

    Raises:
        RefusalError: the parameter `full` of the URL is neither `true` nor `false`.
    """
    stated = request.query_params.get(FULL, "false")
    if stated not in {"true", "false"}:
        raise malformed(f"the parameter {FULL}: expected true or false, got {stated[:40]!r}")
    return stated == "true"


def _public(request: Request) -> str:
    name: str = request.path_params["model"]
    if name not in PUBLIC:
        raise _unknown(name)
    return name


def _unknown(name: str) -> RefusalError:
    return RefusalError(404, "unknown", f"unknown model {name[:60]!r}; available: {', '.join(PUBLIC)}")
