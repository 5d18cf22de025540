"""Requests and responses of the models that run a graph in Triton's Python backend.

`plurum serve` puts this file beside both of them: the ONNX Runtime backend and the OpenVINO model. They run inside
Triton's stub process without Plurum.

Legend: arrays are `[batch, ...]` if the model has a maximum batch size, else they have the model's own shape.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Arrays = list[npt.NDArray[Any]]


class GraphModel:
    """A graph that answers all requests of one call with the same shape in one inference.

    Attributes:
        library: Name of the library that runs the graph, for messages.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        batched: True if the model has a maximum batch size.
    """

    library = ""
    inputs: list[str]
    outputs: list[str]
    batched: bool

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

    def _respond(self, requests: list[Any], inputs: list[Arrays]) -> list[Any]:
        """Return the responses to requests that fit into one inference."""
        is_batch = len(requests) > 1
        try:
            arrays = [np.concatenate(parts) for parts in zip(*inputs, strict=True)] if is_batch else inputs[0]
            outputs = dict(zip(self.outputs, self.run(arrays), strict=True))
            self.finish(outputs, requests, inputs)
        except Exception as error:
            if is_batch:
                # Retry the requests one by one: only some of them may be at fault.
                return [self._respond([one], [tensors])[0] for one, tensors in zip(requests, inputs, strict=True)]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self.library}: {error}"))]
        if not is_batch:
            return [_response(outputs)]
        # Views: each is copied once, into the response's shared memory.
        stops = np.cumsum([len(tensors[0]) for tensors in inputs]).tolist()
        rows = [slice(start, stop) for start, stop in pairwise([0, *stops])]
        return [_response({name: output[part] for name, output in outputs.items()}) for part in rows]


def check_names(kind: str, stated: list[str], present: list[str]) -> None:
    """Check that the graph has the tensors that the config names, and no other inputs.

    Raises:
        TritonModelException: it has not.
    """
    if set(stated) - set(present) or (kind == "input" and set(present) - set(stated)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt names the {kind}s {', '.join(stated)}; the graph has {', '.join(present)}"
        )


def _response(outputs: dict[str, npt.NDArray[Any]]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
