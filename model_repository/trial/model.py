"""Triton's front model while a release is on trial: it has a public name, and forwards requests to two releases.

The candidate handles a fraction of the requests, and the public release the rest. In shadow mode, both releases get
every request, and the public release's predictions are returned and compared with the candidate's. If the candidate
fails, the public release handles the request instead. `plurum rollout --percent` installs and removes this model.

    plurum_trial_answers_total{model, release}    counter: requests completed by each release
    plurum_trial_compared_total{model}            counter: images classified by both releases
    plurum_trial_other_labels_total{model}        counter: compared images with different labels
    plurum_trial_failures_total{model}            counter: requests that failed on the candidate
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_COUNTERS = {
    "answers": "Requests completed while a release is on trial",
    "compared": "Images classified by both releases",
    "other_labels": "Images that the release on trial labelled differently",
    "failures": "Requests that failed on the release on trial",
}


# Type of each parameter of a request that is forwarded.
_PARAMETERS: dict[str, type] = {"patients": str, "full": bool}


class TritonPythonModel:
    """One of several instances; requests that arrive together are forwarded together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the releases and the candidate's percentage from the model's parameters."""
        config = json.loads(args["model_config"])
        parameters = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.current, self.candidate = parameters["current"], parameters["candidate"]
        self.fraction, self.shadow = float(parameters["percent"]) / 100, parameters["shadow"] == "1"
        self.outputs = [output["name"] for output in config["output"]]
        self._families = {
            name: pb_utils.MetricFamily(
                name=f"plurum_trial_{name}_total", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, description in _COUNTERS.items()
        }
        labels = {"model": config["name"]}
        self._completed = {
            model: self._families["answers"].Metric(labels=labels | {"release": model.rpartition("-")[2]})
            for model in (self.current, self.candidate)
        }
        self._counts = {name: self._families[name].Metric(labels=labels) for name in _COUNTERS if name != "answers"}

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response to each request; all run concurrently."""
        return list(await asyncio.gather(*(self._respond(request) for request in requests)))

    async def _respond(self, request: Any) -> Any:
        if self.shadow:
            public, other = await asyncio.gather(
                self._forward(self.current, request), self._forward(self.candidate, request)
            )
            self._compare(public, other)
            return self._pass_on(self.current, public)
        if random.random() < self.fraction:  # noqa: S311 (not a secret)
            response = await self._forward(self.candidate, request)
            if not response.has_error():
                return self._pass_on(self.candidate, response)
            self._counts["failures"].increment(1)
        return self._pass_on(self.current, await self._forward(self.current, request))

    async def _forward(self, model: str, request: Any) -> Any:
        inference = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=self.outputs,
            inputs=request.inputs(),
            request_id=request.request_id(),
            parameters=_known_parameters(request),
        )
        return await inference.async_exec()

    def _pass_on(self, model: str, response: Any) -> Any:
        if response.has_error():
            return pb_utils.InferenceResponse(output_tensors=[], error=response.error())
        self._completed[model].increment(1)
        return pb_utils.InferenceResponse(response.output_tensors())

    def _compare(self, public: Any, other: Any) -> None:
        if other.has_error():
            self._counts["failures"].increment(1)
        if public.has_error() or other.has_error():
            return
        labels = [pb_utils.get_output_tensor_by_name(one, "LABEL").as_numpy() for one in (public, other)]
        self._counts["compared"].increment(len(labels[0]))
        self._counts["other_labels"].increment(int(np.count_nonzero(labels[0] != labels[1])))


def _known_parameters(request: Any) -> dict[str, str | bool]:
    """Return the parameters for audits and cascades; others have no meaning here, and may have types that fail."""
    parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
    return {name: parameters[name] for name, kind in _PARAMETERS.items() if isinstance(parameters.get(name), kind)}
