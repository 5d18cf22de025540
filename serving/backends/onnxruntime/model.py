"""ONNX Runtime as a Python-based Triton backend: serve `backend: "onnxruntime"` if Triton has no C++ backend for it.

The same `config.pbtxt` works with Triton's own backend. This one reads `default_model_filename` (or `model.onnx`) in
the version's folder, and these parameters of the C++ backend: `intra_op_thread_count`, `inter_op_thread_count` and
`execution_mode` (0 sequential, 1 parallel). With 0 threads, ONNX Runtime chooses the number. Its own parameter
`threads_alone` is the number of threads of an instance that computes while no other of the server does; `plurum serve`
sets it.

All requests of one call with the same shape become one run of the session. The backend runs inside Triton's stub
process without Plurum, with `graph_model.py` beside it: it requires only NumPy and ONNX Runtime.

Legend: arrays are `[batch, ...]` if the model has a maximum batch size, else they have the model's own shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
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
        threads_alone,
        timed_stages,
    )
else:
    from cores import SharedCores
    from graph_model import Arrays, GraphModel, check_names, shared_cores, stage_files, threads_alone, timed_stages
    from stages import Tensors

_TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
# Default of Triton's C++ backend for a graph with a free first dimension, if the config states no batch size.
_DEFAULT_MAX_BATCH_SIZE = 4


class TritonPythonModel(GraphModel):
    """One instance of a model, with one session."""

    library = "ONNX Runtime"

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Fill in inputs, outputs and the maximum batch size from the graph if the config leaves them out."""
        stated = config.as_dict()
        if stated["input"] and stated["output"]:
            return config
        # Triton gives no version here; all versions of a model share one config.
        session = _session(_model_file(Path(pb_utils.get_model_dir()), stated), stated)
        tensors = [*session.get_inputs(), *session.get_outputs()]
        free = all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in tensors)
        if free and stated["max_batch_size"] == 0:
            config.set_max_batch_size(_DEFAULT_MAX_BATCH_SIZE)
            config.set_dynamic_batching()
        batched = free or stated["max_batch_size"] > 0
        if not stated["input"]:
            for tensor in session.get_inputs():
                config.add_input(_config_entry(tensor, batched))
        if not stated["output"]:
            for tensor in session.get_outputs():
                config.add_output(_config_entry(tensor, batched))
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph.

        Raises:
            TritonModelException: the file is missing or not a graph, or the config names tensors that the graph does
                not have.
        """
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        files = [version / name for name in stage_files(config)]
        self._cores = shared_cores(config, version.parent)
        graphs = [_Graph(file, config, self._cores) for file in files or [_model_file(version, config)]]
        self._graph = graphs[0]
        check_names("input", self.inputs, self._graph.inputs)
        for graph in graphs:
            check_names("output", self.outputs, graph.outputs)
        self.batched = config["max_batch_size"] > 0
        self.stages = timed_stages(config, [graph.infer for graph in graphs]) if files else ()

    def finalize(self) -> None:
        """Release the sessions."""
        del self._graph, self.stages
        self._cores.close()

    def run(self, arrays: Arrays) -> Arrays:
        """Return the outputs of one run of the graph."""
        return self._graph.run(dict(zip(self.inputs, arrays, strict=True)), self.outputs)


class _Graph:
    """A graph with its sessions: one for its threads and, if the config says so, one for those of all instances.

    Args:
        file: File of the graph.
        config: Config of the model.
        cores: Cores that it shares with other instances.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
    """

    def __init__(self, file: Path, config: dict[str, Any], cores: SharedCores) -> None:
        self._cores = cores
        self._session = _session(file, config)
        self._alone: Any = _session(file, config, "threads_alone") if threads_alone(config) else None
        self.inputs = [one.name for one in self._session.get_inputs()]
        self.outputs = [one.name for one in self._session.get_outputs()]

    def run(self, tensors: Tensors, outputs: list[str]) -> Arrays:
        """Return the outputs with these names."""
        with self._cores.use() as is_alone:
            session = self._alone if is_alone else self._session
            found: Arrays = session.run(outputs, {name: tensors[name] for name in self.inputs})
        return found

    def infer(self, tensors: Tensors) -> Tensors:
        """Return all outputs by name."""
        return dict(zip(self.outputs, self.run(tensors, self.outputs), strict=True))


def _session(file: Path, config: dict[str, Any], threads: str = "intra_op_thread_count") -> Any:
    """Return a session with the number of threads that a parameter of the config states."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = _number(config, threads)
    options.inter_op_num_threads = _number(config, "inter_op_thread_count")
    if _number(config, "execution_mode") == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    # Spinning threads would take cores from the other models of the ensemble.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Hide warnings about graphs, which concern only their export.
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"ONNX Runtime can't load {file.name}: {error}") from error


def _model_file(version: Path, config: dict[str, Any]) -> Path:
    return version / (config.get("default_model_filename") or "model.onnx")


def _number(config: dict[str, Any], name: str) -> int:
    text = config.get("parameters", {}).get(name, {}).get("string_value", "0")
    if not text.isdigit():
        raise pb_utils.TritonModelException(f"{name}: expected a number, got {text!r}")
    return int(text)


def _config_entry(tensor: Any, batched: bool) -> dict[str, Any]:
    if tensor.type not in _TRITON_TYPES:
        raise pb_utils.TritonModelException(f"{tensor.name!r} is a {tensor.type}, which this backend does not support")
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "data_type": _TRITON_TYPES[tensor.type], "dims": dims[1:] if batched else dims}
