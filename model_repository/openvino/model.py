"""OpenVINO in Triton's Python backend, for graphs whose backend is `openvino`.

`plurum serve` links this file and `graph_model.py` beside each graph. They stand in for Triton's C++ backend of that
name. The wheel lacks that backend, and NVIDIA's version accepts only batches of exactly `max_batch_size`. Parameters:

- `INFERENCE_NUM_THREADS`, as in the C++ backend
- `threads_alone`, the threads of an instance that computes while no other of the server does; `plurum serve` sets it
- `HINT_BF16`, as in the C++ backend: `YES` computes in BF16 if the processor supports it, any other value in FP32
- `stages`, the files of a cascade's graphs, which run instead of `graph`; see `graph_model.py`
- `graph`, a file in the version's folder. `plurum serve` sets it from `default_model_filename`; the default is
  `model.xml` or `model.onnx`

Like the C++ backend, it does not complete configs: inputs and outputs must be stated.

Beside the fused graph, `plurum serve` also links the files of the labels model. The winner is then named and counted
here, which saves a step in Triton.

The graph is compiled for one, two and four images, and other batches are split into these. With fixed shapes, OpenVINO
computes a densenet121 in up to a sixth less time than with a free batch size. A prediction also does not depend on
concurrent requests, nor on the number of threads. Batches fetch weights that exceed the cache once for several images.

The model runs inside Triton's stub process without Plurum: it requires only NumPy and OpenVINO.

Legend: arrays are `[batch, ...]` if the model has a maximum batch size, else they have the model's own shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.onnx_graphs.stages import Tensors
    from plurum.serving.backends.cores import SharedCores
    from plurum.serving.backends.graph_model import (
        Arrays,
        GraphModel,
        check_names,
        shared_cores,
        stage_files,
        timed_stages,
    )
else:
    from cores import SharedCores
    from graph_model import Arrays, GraphModel, check_names, shared_cores, stage_files, timed_stages
    from stages import Tensors

# More sizes gain nothing, and each needs memory for a copy of the weights.
_BATCH_SIZES = (4, 2, 1)


class TritonPythonModel(GraphModel):
    """One instance of a model, which runs one inference at a time."""

    library = "OpenVINO"

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the graph.

        Raises:
            TritonModelException: OpenVINO is not installed, the file is missing or not a graph, or the config names
                tensors that the graph does not have.
        """
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self._labels = _labels(version)
        if self._labels:
            self.outputs = ["INDEX", *(name for name in self.outputs if name not in {"LABEL", "AUDIT"})]
        self.batched = config["max_batch_size"] > 0
        files = [version / name for name in stage_files(config)]
        self._cores = shared_cores(config, version.parent)
        graphs = [_Graph(file, config, self.inputs, self._cores) for file in files or [_model_file(version, config)]]
        for graph in graphs:
            check_names("output", self.outputs, graph.outputs)
        self._graph = graphs[0]
        self.stages = timed_stages(config, [graph.infer for graph in graphs]) if files else ()

    def finalize(self) -> None:
        """Release the model, and count the last predictions."""
        del self._graph, self.stages
        self._cores.close()
        if self._labels:
            self._labels.close()

    def finish(self, outputs: dict[str, Any], requests: list[Any], inputs: list[Arrays]) -> None:
        """Name the winners, if the files of the labels model are beside this one."""
        if self._labels:
            ids, sizes = [request.request_id() for request in requests], [len(tensors[0]) for tensors in inputs]
            if self._labels.has_audit:
                parameters = [request.parameters() for request in requests]
                outputs["AUDIT"] = self._labels.draw([tensors[0] for tensors in inputs], parameters)
            outputs["LABEL"] = self._labels.name_winners(outputs, ids, sizes)
            del outputs["INDEX"]

    def run(self, arrays: Arrays) -> Arrays:
        """Return the outputs of one inference."""
        found = self._graph.infer(dict(zip(self.inputs, arrays, strict=True)))
        return [found[name] for name in self.outputs]


class _Graph:
    """A graph, compiled for some batch sizes.

    Args:
        file: File of the graph.
        config: Config of the model.
        given: Names of the inputs that the graph must have, and the only ones unless it is a later stage of a cascade.
        cores: Cores that it shares with other instances.

    Attributes:
        outputs: Names of the outputs.
    """

    def __init__(self, file: Path, config: dict[str, Any], given: list[str], cores: SharedCores) -> None:
        self._cores = cores
        self._models = _compile(file, config, given, _threads(config, "INFERENCE_NUM_THREADS"))
        # With all cores, batches gain nothing.
        threads, single = (
            _threads(config, "threads_alone"),
            config | {"max_batch_size": min(1, config["max_batch_size"])},
        )
        self._alone = _compile(file, single, given, threads)[1] if threads else None
        self._batched = config["max_batch_size"] > 0
        ports = self._models[1].inputs
        # A tensor of a graph can have several names.
        self._inputs = [next((name for name in given if name in port.names), port.any_name) for port in ports]
        self._names = [port.names for port in self._models[1].outputs]
        self.outputs = [name for several in self._names for name in several]

    def infer(self, tensors: Tensors) -> Tensors:
        """Return all outputs, computed in the batch sizes that the graph is compiled for."""
        if not self._batched:
            with self._cores.use() as is_alone:
                return self._run(self._alone if is_alone else self._models[1], tensors)
        given = {name: tensors[name] for name in self._inputs}
        size, row, results = len(given[self._inputs[0]]), 0, []
        while row < size:
            with self._cores.use() as is_alone:
                fitting = next(one for one in self._models if one <= size - row)
                taken, model = (1, self._alone) if is_alone else (fitting, self._models[fitting])
                results.append(self._run(model, {name: one[row : row + taken] for name, one in given.items()}))
                row += taken
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([one[name] for one in results]) for name in results[0]}

    def _run(self, model: Any, tensors: Tensors) -> Tensors:
        # OpenVINO reads inputs in place, and returns copies of the outputs.
        outputs = model(tensors).to_tuple()
        return {name: array for several, array in zip(self._names, outputs, strict=True) for name in several}


def _labels(version: Path) -> Any:
    """Return the `Labels` of the version's folder, or None if it has no `labels.py`."""
    if not (version / "labels.py").is_file():
        return None
    from labels import Labels  # type: ignore[import-not-found]

    return Labels(version)


def _compile(file: Path, config: dict[str, Any], given: list[str], threads: str) -> dict[int, Any]:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise pb_utils.TritonModelException(
            f"{config['name']} requires OpenVINO, which is not installed. Run: pip install 'plurum[openvino]'"
        ) from error
    options: dict[str, Any] = {
        # One stream: Triton runs the instances, and divides the cores among them.
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "bf16" if _parameter(config, "HINT_BF16").upper() == "YES" else "f32",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # Two instances pinned to the same core would halve each other's speed.
    options["ENABLE_CPU_PINNING"] = False
    core = openvino.Core()
    try:
        model = core.read_model(str(file))
        present = [name for port in model.inputs for name in port.names]
        # Later stages of a cascade also take what the stage before has made.
        check_names("input", given, [name for name in present if not name.endswith("_BEFORE")])
        return _by_size(core, model, options, _batch_sizes(config))
    except pb_utils.TritonModelException:
        raise
    except Exception as error:
        raise pb_utils.TritonModelException(f"OpenVINO can't load {file.name}: {error}") from error


def _batch_sizes(config: dict[str, Any]) -> tuple[int, ...]:
    """Return the batch sizes to compile a graph for, largest first; none for a model without batches."""
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    # A graph that takes one request at a time takes so long that batches gain nothing.
    sizes = (1,) if preferred == [1] else _BATCH_SIZES
    return tuple(size for size in sizes if size <= config["max_batch_size"])


def _by_size(core: Any, model: Any, options: dict[str, Any], sizes: tuple[int, ...]) -> dict[int, Any]:
    """Return the compiled graphs by batch size, largest first; a model without batches has one entry."""
    if not sizes:
        return {1: core.compile_model(model, "CPU", options)}
    models = {}
    for size in sizes:
        model.reshape({port: [size, *list(port.partial_shape)[1:]] for port in model.inputs})
        models[size] = core.compile_model(model, "CPU", options)
    return models


def _model_file(version: Path, config: dict[str, Any]) -> Path:
    if named := _parameter(config, "graph"):
        return version / named
    return next((version / name for name in ("model.xml", "model.onnx") if (version / name).is_file()), version)


def _threads(config: dict[str, Any], name: str) -> str:
    text = _parameter(config, name)
    if text and not text.isdigit():
        raise pb_utils.TritonModelException(f"{name}: expected a number, got {text!r}")
    return text


def _parameter(config: dict[str, Any], name: str) -> str:
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))
