"""OpenVINO as a Python-based Triton backend: answers for `backend: "openvino"` where Triton has no C++ one.

A drop-in: the same `config.pbtxt` works with Triton's own backend. It reads `default_model_filename` (or `model.xml`,
then `model.onnx`) in the version's folder and these parameters of the C++ backend: `INFERENCE_NUM_THREADS` and
`HINT_BF16` (`YES` computes in BF16 where the processor can; otherwise in FP32). Like the C++ one it does not complete
configs: inputs and outputs must be stated.

The graph is compiled for one image, and the images of a batch follow each other: where all shapes are known, OpenVINO
computes a densenet121 in up to a sixth less time than where the batch is free, which is more than batches gain; and an
answer does not depend on who asks at the same time. Runs inside Triton's stub process, where there is no Plurum: NumPy
and OpenVINO only.

Legend: arrays are `[batch, ...]` where the model has a maximum batch size, else of the model's own shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Arrays = list[npt.NDArray[Any]]


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
        self._batched = config["max_batch_size"] > 0
        self._model = _compiled(_model_file(version, config), config)
        _check_names("output", self._outputs, [name for port in self._model.outputs for name in port.names])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own; one that fails does not take its neighbours with it."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Let go of the model."""
        del self._model

    def _answer(self, request: Any) -> Any:
        arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
        try:
            outputs = self._run(arrays)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"OpenVINO: {error}"))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in zip(self._outputs, outputs, strict=True)]
        )

    def _run(self, arrays: Arrays) -> Arrays:
        size = len(arrays[0])
        if size == 1 or not self._batched:
            return self._inferred(arrays)
        answers = [self._inferred([array[row : row + 1] for array in arrays]) for row in range(size)]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def _inferred(self, arrays: Arrays) -> Arrays:
        # What comes in is read where it lies; what goes out is a copy of its own.
        answers = self._model(dict(zip(self._inputs, arrays, strict=True)))
        return [answers[name] for name in self._outputs]


def _compiled(file: Path, config: dict[str, Any]) -> Any:
    """Return the graph for a batch of one; of a model that takes none, as it is."""
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
        if config["max_batch_size"]:
            model.reshape({port: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
        return core.compile_model(model, "CPU", options)
    except pb_utils.TritonModelException:
        raise
    except Exception as error:
        raise pb_utils.TritonModelException(f"OpenVINO can't load {file.name}: {error}") from error


def _model_file(version: Path, config: dict[str, Any]) -> Path:
    if named := config.get("default_model_filename"):
        return version / str(named)
    return next((version / name for name in ("model.xml", "model.onnx") if (version / name).is_file()), version)


def _parameter(config: dict[str, Any], name: str) -> str:
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))


def _check_names(kind: str, stated: list[str], present: list[str]) -> None:
    if set(stated) - set(present) or (kind == "input" and set(present) - set(stated)):
        raise pb_utils.TritonModelException(
            f"config.pbtxt names the {kind}s {', '.join(stated)}; the graph has {', '.join(present)}"
        )
