"""Triton's front model while a release is on trial: it stands under a public name and passes questions on.

A share of them is answered by the candidate, the rest by the public release; or, in shadow mode, both are asked, the
public release's answer is given and the two are compared. A candidate that fails is never seen by who asked: the public
release answers instead. `plurum rollout --percent` puts this model in place and takes it away again.

    plurum_trial_answers_total{model, release}    counter: questions answered by each release
    plurum_trial_compared_total{model}            counter: images that both releases answered
    plurum_trial_other_labels_total{model}        counter: those of them with another label
    plurum_trial_failures_total{model}            counter: questions that the candidate failed to answer
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_COUNTERS = {
    "answers": "Questions answered while a release is on trial",
    "compared": "Images that both releases answered",
    "other_labels": "Images that the release on trial labelled otherwise",
    "failures": "Questions that the release on trial failed to answer",
}


class TritonPythonModel:
    """One of several instances; the questions that come together are passed on together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read who is asked, and how often, from the model's parameters."""
        config = json.loads(args["model_config"])
        said = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.current, self.candidate = said["current"], said["candidate"]
        self.share, self.shadow = float(said["percent"]) / 100, said["shadow"] == "1"
        self.outputs = [output["name"] for output in config["output"]]
        self._families = {
            name: pb_utils.MetricFamily(
                name=f"plurum_trial_{name}_total", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, description in _COUNTERS.items()
        }
        labels = {"model": config["name"]}
        self._answers = {
            model: self._families["answers"].Metric(labels=labels | {"release": model.rpartition("-")[2]})
            for model in (self.current, self.candidate)
        }
        self._counts = {name: self._families[name].Metric(labels=labels) for name in _COUNTERS if name != "answers"}

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all of them at once."""
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: Any) -> Any:
        if self.shadow:
            public, other = await asyncio.gather(self._ask(self.current, request), self._ask(self.candidate, request))
            self._compare(public, other)
            return self._given(self.current, public)
        if random.random() < self.share:  # noqa: S311 (no secret hangs on which release answers)
            answer = await self._ask(self.candidate, request)
            if not answer.has_error():
                return self._given(self.candidate, answer)
            self._counts["failures"].increment(1)
        return self._given(self.current, await self._ask(self.current, request))

    async def _ask(self, model: str, request: Any) -> Any:
        question = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=self.outputs,
            inputs=request.inputs(),
            request_id=request.request_id(),
        )
        return await question.async_exec()

    def _given(self, model: str, answer: Any) -> Any:
        if answer.has_error():
            return pb_utils.InferenceResponse(output_tensors=[], error=answer.error())
        self._answers[model].increment(1)
        return pb_utils.InferenceResponse(answer.output_tensors())

    def _compare(self, public: Any, other: Any) -> None:
        if other.has_error():
            self._counts["failures"].increment(1)
        if public.has_error() or other.has_error():
            return
        labels = [pb_utils.get_output_tensor_by_name(one, "LABEL").as_numpy() for one in (public, other)]
        self._counts["compared"].increment(len(labels[0]))
        self._counts["other_labels"].increment(int(np.count_nonzero(labels[0] != labels[1])))
