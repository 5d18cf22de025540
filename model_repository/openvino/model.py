"""OpenVINO in Triton's Python backend: `plurum serve` lays it beside each graph whose config says `openvino`.

It stands in for Triton's C++ backend of that name, which the wheel lacks and which, in NVIDIA's container, takes only
batches of exactly `max_batch_size`. It reads these parameters: `INFERENCE_NUM_THREADS` and `HINT_BF16` as the C++ one
does (`YES` computes in BF16 where the processor can, all else in FP32), and `graph`, a file in the version's folder:
`plurum serve` fills it in from the config's `default_model_filename`; otherwise it is `model.xml` or `model.onnx`. Like
the C++ one it does not complete configs: inputs and outputs must be stated.

Beside the fused graph `plurum serve` lays what the labels model is made of, too: the winner is then named and counted
here, and Triton need not hand the answer on.

The graph is compiled for one, two and four images, and other batches are made up of these: where all shapes are known,
OpenVINO computes a densenet121 in up to a sixth less time than where the batch is free, and an answer does not depend
on who asks at the same time; images together need not each fetch weights that outgrow the cache. Runs inside Triton's
stub process, where there is no Plurum: NumPy and OpenVINO only.

Legend: arrays are `[batch, ...]` where the model has a maximum batch size, else of the model's own shape.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Arrays = list[npt.NDArray[Any]]

# More gain nothing, and each takes memory for another copy of the weights.
_TOGETHER = (4, 2, 1)


class TritonPythonModel:
    """One instance of one model, which computes one inference at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the graph.

        Raises:
            TritonModelException: OpenVINO is not installed, the file is missing or no graph, or the config names
                tensors that it has not.
        """
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        self._inputs = [entry["name"] for entry in config["input"]]
        self._outputs = [entry["name"] for entry in config["output"]]
        self._labels = _labels(version)
        if self._labels:
            self._outputs = ["INDEX", *(name for name in self._outputs if name != "LABEL")]
        self._batched = config["max_batch_size"] > 0
        self._models = _compiled(_model_file(version, config), config)
        names = [port.names for port in self._models[1].outputs]
        _check_names("output", self._outputs, [name for several in names for name in several])
        self._places = [next(place for place, several in enumerate(names) if name in several) for name in self._outputs]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request; one that fails does not take its neighbours with it."""
        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        responses: list[Any] = [None] * len(requests)
        for group in self._groups(inputs):
            answers = self._answers([requests[index] for index in group], [inputs[index] for index in group])
            for index, answer in zip(group, answers, strict=True):
                responses[index] = answer
        return responses

    def finalize(self) -> None:
        """Let go of the model, and count what was answered last."""
        del self._models
        if self._labels:
            self._labels.close()

    def _groups(self, inputs: list[Arrays]) -> list[list[int]]:
        """Return the indices of requests that fit into one inference, in order of arrival."""
        if not self._batched:
            return [[index] for index in range(len(inputs))]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, arrays in enumerate(inputs):
            groups.setdefault(tuple(array.shape[1:] for array in arrays), []).append(index)
        return list(groups.values())

    def _answers(self, requests: list[Any], inputs: list[Arrays]) -> list[Any]:
        """Return the responses to requests that fit into one inference."""
        together = len(requests) > 1
        try:
            arrays = [np.concatenate(parts) for parts in zip(*inputs, strict=True)] if together else inputs[0]
            outputs = dict(zip(self._outputs, self._run(arrays), strict=True))
            if self._labels:
                ids, sizes = [request.request_id() for request in requests], [len(asked[0]) for asked in inputs]
                outputs["LABEL"] = self._labels.of(outputs, ids, sizes)
                del outputs["INDEX"]
        except Exception as error:
            if together:
                # Not all of them need be to blame.
                return [self._answers([one], [asked])[0] for one, asked in zip(requests, inputs, strict=True)]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"OpenVINO: {error}"))]
        if not together:
            return [_response(outputs)]
        # Views: each is copied once, into the response's shared memory.
        stops = np.cumsum([len(asked[0]) for asked in inputs]).tolist()
        rows = [slice(start, stop) for start, stop in pairwise([0, *stops])]
        return [_response({name: output[part] for name, output in outputs.items()}) for part in rows]

    def _run(self, arrays: Arrays) -> Arrays:
        if not self._batched:
            return self._inferred(self._models[1], arrays)
        size, row, answers = len(arrays[0]), 0, []
        for together, model in self._models.items():
            while size - row >= together:
                answers.append(self._inferred(model, [array[row : row + together] for array in arrays]))
                row += together
        return answers[0] if len(answers) == 1 else [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def _inferred(self, model: Any, arrays: Arrays) -> Arrays:
        # What comes in is read where it lies; what goes out is a copy of its own.
        answers = model(dict(zip(self._inputs, arrays, strict=True))).to_tuple()
        return [answers[place] for place in self._places]


def _response(outputs: dict[str, npt.NDArray[Any]]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _labels(version: Path) -> Any:
    """Return what names and counts winners, where it lies beside the graph."""
    if not (version / "labels.py").is_file():
        return None
    from labels import Labels  # type: ignore[import-not-found]

    return Labels(version)


def _compiled(file: Path, config: dict[str, Any]) -> dict[int, Any]:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise pb_utils.TritonModelException(
            f"{config['name']} is served by OpenVINO, which is not installed; run: pip install 'plurum[openvino]'"
        ) from error
    options: dict[str, Any] = {
        # One stream: instances are Triton's, and each gets its share of the cores.
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "bf16" if _parameter(config, "HINT_BF16").upper() == "YES" else "f32",
    }
    if threads := _parameter(config, "INFERENCE_NUM_THREADS"):
        if not threads.isdigit():
            raise pb_utils.TritonModelException(f"parameter 'INFERENCE_NUM_THREADS' is {threads!r}, not a number")
        options["INFERENCE_NUM_THREADS"] = threads
    # Two instances that are pinned to the same core would halve each other.
    options["ENABLE_CPU_PINNING"] = False
    core = openvino.Core()
    try:
        model = core.read_model(str(file))
        stated = [entry["name"] for entry in config["input"]]
        _check_names("input", stated, [name for port in model.inputs for name in port.names])
        return _by_size(core, model, options, config["max_batch_size"])
    except pb_utils.TritonModelException:
        raise
    except Exception as error:
        raise pb_utils.TritonModelException(f"OpenVINO can't load {file.name}: {error}") from error


def _by_size(core: Any, model: Any, options: dict[str, Any], most: int) -> dict[int, Any]:
    """Return the graph by the batch that it is compiled for, largest first; of a model that takes none, as it is."""
    if not most:
        return {1: core.compile_model(model, "CPU", options)}
    models = {}
    for size in _TOGETHER:
        if size <= most:
            model.reshape({port: [size, *list(port.partial_shape)[1:]] for port in model.inputs})
            models[size] = core.compile_model(model, "CPU", options)
    return models


def _model_file(version: Path, config: dict[str, Any]) -> Path:
    if named := _parameter(config, "graph"):
        return version / named
    return next((version / name for name in ("model.xml", "model.onnx") if (version / name).is_file()), version)


def _parameter(config: dict[str, Any], name: str) -> str:
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))


def _check_names(kind: str, stated: list[str], present: list[str]) -> None:
    if set(stated) - set(present) or (kind == "input" and set(present) - set(stated)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt names the {kind}s {', '.join(stated)}; the graph has {', '.join(present)}"
        )
