"""Requests and responses of the models that run a graph in Triton's Python backend.

`plurum serve` puts this file beside both of them: the ONNX Runtime backend and the OpenVINO model. They run inside
Triton's stub process without Plurum.

A cascade has a graph per stage, which the parameter `stages` of its config names, separated by spaces; see `stages.py`.
A request with the parameter `full` goes through all. Triton's /metrics page tells what the stages take; each stage has
a number from 1:

    plurum_stage_images_total{model, stage}     counter: images that ran through the stage
    plurum_stage_seconds_total{model, stage}    counter: seconds that they took

Legend: arrays are `[batch, ...]` if the model has a maximum batch size, else they have the model's own shape.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.onnx_graphs.stages import Stage, Tensors, run_stages
    from plurum.serving.backends.cores import SharedCores
else:
    from cores import SharedCores
    from stages import Stage, Tensors, run_stages

Arrays = list[npt.NDArray[Any]]
# Parameter of a config: threads of an instance that computes while no other does.
_THREADS_ALONE = "threads_alone"
# Parameter of a request: true runs all stages for all of its images.
_FULL = "full"
_STAGE_COUNTERS = {
    "images": "Images that ran through a stage of the cascade",
    "seconds": "Seconds that images took in a stage of the cascade",
}
# A call to Triton's metrics takes some 50 µs.
_COUNT_EVERY_S = 0.25


class ModelError(RuntimeError):
    """A model that was requested for a graph's results returned an error.

    Args:
        message: Message of the error.
        code: Code of the error, of `TritonError`, with which the request fails, too.
    """

    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


class GraphModel:
    """A graph that answers all requests of one call with the same shape in one inference.

    Attributes:
        library: Name of the library that runs the graph, for messages.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        batched: True if the model has a maximum batch size.
        stages: Graphs of a cascade, which run instead of `run`; empty for other models.
    """

    library = ""
    inputs: list[str]
    outputs: list[str]
    batched: bool
    stages: Sequence[Stage] = ()

    def run(self, arrays: Arrays) -> Arrays:
        """Return the outputs of one inference."""
        raise NotImplementedError

    def finish(self, outputs: dict[str, Any], requests: list[Any], inputs: list[Arrays]) -> None:
        """Change the outputs of requests that were inferred together before they are sent."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response to each request; a failed request does not affect the others."""
        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        responses: list[Any] = [None] * len(requests)
        for group in self._groups(inputs):
            found = self._respond([requests[index] for index in group], [inputs[index] for index in group])
            for index, response in zip(group, found, strict=True):
                responses[index] = response
        return responses

    def _groups(self, inputs: list[Arrays]) -> list[list[int]]:
        """Group the indices of requests that fit into one inference, in order of arrival."""
        if not self.batched:
            return [[index] for index in range(len(inputs))]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, arrays in enumerate(inputs):
            groups.setdefault(tuple(array.shape[1:] for array in arrays), []).append(index)
        return list(groups.values())

    def _infer(self, arrays: Arrays, requests: list[Any], inputs: list[Arrays]) -> Tensors:
        """Return the outputs of requests that fit into one inference, by name."""
        if not self.stages:
            return dict(zip(self.outputs, self.run(arrays), strict=True))
        is_full = np.repeat([_is_full(one) for one in requests], [len(tensors[0]) for tensors in inputs])
        return run_stages(self.stages, dict(zip(self.inputs, arrays, strict=True)), is_full, self.outputs)

    def _respond(self, requests: list[Any], inputs: list[Arrays]) -> list[Any]:
        """Return the responses to requests that fit into one inference."""
        is_batch = len(requests) > 1
        try:
            arrays = [np.concatenate(parts) for parts in zip(*inputs, strict=True)] if is_batch else inputs[0]
            outputs = self._infer(arrays, requests, inputs)
            self.finish(outputs, requests, inputs)
        except Exception as error:
            if is_batch:
                # Retry the requests one by one: only some of them may be at fault.
                return [self._respond([one], [tensors])[0] for one, tensors in zip(requests, inputs, strict=True)]
            # A full queue is no fault of the server: clients send the request again later.
            code = error.code if isinstance(error, ModelError) else pb_utils.TritonError.INTERNAL
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self.library}: {error}", code))]
        if not is_batch:
            return [_response(outputs)]
        # Views: each is copied once, into the response's shared memory.
        stops = np.cumsum([len(tensors[0]) for tensors in inputs]).tolist()
        rows = [slice(start, stop) for start, stop in pairwise([0, *stops])]
        return [_response({name: output[part] for name, output in outputs.items()}) for part in rows]


class StageClock:
    """Runs a stage, and counts its images and its time on Triton's /metrics page, a few times per second.

    Args:
        stage: Graph of the stage.
        model: Name of the model.
        number: Number of the stage, from 1.
    """

    def __init__(self, stage: Stage, model: str, number: int) -> None:
        self._stage = stage
        self._sums = dict.fromkeys(_STAGE_COUNTERS, 0.0)
        # Triton removes metrics that are no longer referenced, and families must outlive their metrics.
        self._families = {
            name: pb_utils.MetricFamily(
                name=f"plurum_stage_{name}_total", description=about, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, about in _STAGE_COUNTERS.items()
        }
        labels = {"model": model, "stage": str(number)}
        self._counters = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._counted_s = time.perf_counter()

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return all outputs of the stage by name."""
        start_s = time.perf_counter()
        found = self._stage(tensors)
        now_s = time.perf_counter()
        self._sums["images"] += len(next(iter(tensors.values())))
        self._sums["seconds"] += now_s - start_s
        if now_s - self._counted_s >= _COUNT_EVERY_S:
            for name, counter in self._counters.items():
                counter.increment(self._sums[name])
                self._sums[name] = 0.0
            self._counted_s = now_s
        return found


def timed_stages(config: dict[str, Any], stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages of a model so that their images and times are counted."""
    return [StageClock(stage, str(config["name"]), number) for number, stage in enumerate(stages, 1)]


def stage_files(config: dict[str, Any]) -> list[str]:
    """Return the files of a cascade's stages that a config names; none for other models."""
    return str(config.get("parameters", {}).get("stages", {}).get("string_value", "")).split()


def threads_alone(config: dict[str, Any]) -> str:
    """Return the number of threads of an instance that computes alone; empty if it is that of all others."""
    return str(config.get("parameters", {}).get(_THREADS_ALONE, {}).get("string_value", ""))


def shared_cores(config: dict[str, Any], model: Path) -> SharedCores:
    """Return the cores that the model in the folder `model` shares with the other models of its repository."""
    return SharedCores(model.parent / "cores.lock" if threads_alone(config) else None)


def check_names(kind: str, stated: list[str], present: list[str]) -> None:
    """Check that the graph has the tensors that the config names, and no other inputs.

    Raises:
        TritonModelException: it has not.
    """
    if set(stated) - set(present) or (kind == "input" and set(present) - set(stated)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt names the {kind}s {', '.join(stated)}; the graph has {', '.join(present)}"
        )


def _is_full(request: Any) -> bool:
    """Return True if a request is to run through all stages.

    Raises:
        TypeError: its parameter is not a Boolean.
    """
    parameters = request.parameters()
    # Nearly all requests have none.
    stated = json.loads(parameters).get(_FULL, False) if _FULL in parameters else False
    if not isinstance(stated, bool):
        raise TypeError(f"{_FULL}: expected true or false, got {stated!r}")
    return stated


def _response(outputs: dict[str, npt.NDArray[Any]]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
