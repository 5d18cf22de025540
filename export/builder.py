"""TensorRT's builder in a process of its own: it ends with a segmentation fault on some graphs (seen with 1.7's RTX).

    python builder.py FLAVOUR GRAPH ENGINE MAX_BATCH_SIZE [TIMING_CACHE]

Writes the engine and prints one line of JSON: `version`, `inputs` and `outputs`, or `error`. Imports TensorRT and
nothing of Plurum, so that a build does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "profile_of"]

# Ada: the newest that RTX builds for and data centres have (L4, L40).
_PROOF_CAPABILITY = "SM89"


def main(flavour: str, graph: str, engine: str, max_batch_size: str, timing_cache: str = "") -> None:
    """Build and report."""
    trt = importlib.import_module(flavour)
    logger = _remembering_logger(trt)
    builder = trt.Builder(logger)
    # Where there is no such flag (TensorRT 11), networks are strongly typed anyway.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(graph):
        reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        _tell(error=f"TensorRT can't parse {graph}: {reasons}")
        return
    config = _config(builder, network, int(max_batch_size))
    if flavour == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, _PROOF_CAPABILITY), 0)
    cache = Path(timing_cache) if timing_cache else None
    if cache is not None:
        timed = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
        config.set_timing_cache(timed, ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        _tell(error=f"TensorRT parses {graph} and can't build it: {logger.last}")
        return
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    Path(engine).write_bytes(bytes(serialized))
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _tell(version=str(trt.__version__), inputs=_described(inputs), outputs=_described(outputs))


def profile_of(max_batch_size: int) -> tuple[int, int, int]:
    """Return the smallest, the typical and the largest batch that a plan is built for."""
    return 1, max(1, max_batch_size // 2), max_batch_size


def _config(builder: Any, network: Any, max_batch_size: int) -> Any:
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        # Without a profile the batch would silently become 1.
        profile.set_shape(tensor.name, *[(batch, *tuple(tensor.shape)[1:]) for batch in profile_of(max_batch_size)])
    config.add_optimization_profile(profile)
    return config


def _remembering_logger(trt: Any) -> Any:
    """Return a logger that keeps the last error: the builder itself returns nothing but None."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.last = message

    return Logger()


def _described(tensors: list[Any]) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.dtype.name, list(tensor.shape)) for tensor in tensors}


def _tell(**told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
