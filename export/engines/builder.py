"""Run TensorRT's builder in a separate process, because it crashes on some graphs (seen with TensorRT-RTX 1.7).

    python builder.py FLAVOUR GRAPH ENGINE MAX_BATCH_SIZE [TIMING_CACHE]

Writes the engine and prints one line of JSON: `version`, `inputs` and `outputs`, or `error`. Polygraphy drives the
builder. The module imports nothing of Plurum, so that a build does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "profile_of"]

# Ada: the newest capability of data-centre GPUs (L4, L40) that TensorRT-RTX builds for.
_PROOF_CAPABILITY = (8, 9)


def main(flavour: str, graph: str, engine: str, max_batch_size: str, timing_cache: str = "") -> None:
    """Build `graph`, write `engine`, and print the report."""
    if flavour == "tensorrt_rtx":
        # Polygraphy reads this variable on import.
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    trt = importlib.import_module(flavour)
    from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    logger = _install_logger(trt)
    try:
        # TensorRT 11 has no such flag: its networks are always strongly typed, and Polygraphy refuses the option.
        flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
        built = network_from_onnx_path(graph, strongly_typed=hasattr(flags, "STRONGLY_TYPED"))
    except PolygraphyException as error:
        _print_report(error=f"TensorRT can't parse {graph}: {logger.last or error}")
        return
    network = built[1]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    try:
        config = _config(flavour, inputs, int(max_batch_size), timing_cache)
        data = bytes(engine_bytes_from_network(built, config, save_timing_cache=timing_cache or None))
    except PolygraphyException as error:
        _print_report(error=f"TensorRT parses {graph} and can't build it: {logger.last or error}")
        return
    Path(engine).write_bytes(data)
    _print_report(version=str(trt.__version__), inputs=_describe(inputs), outputs=_describe(outputs))


def profile_of(max_batch_size: int) -> tuple[int, int, int]:
    """Return the smallest, typical and largest batch of a plan."""
    return 1, max(1, max_batch_size // 2), max_batch_size


def _config(flavour: str, inputs: list[Any], max_batch_size: int, timing_cache: str) -> Any:
    """Return Polygraphy's builder config."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for tensor in inputs:
        # Without a profile the batch would silently become 1.
        shapes = [(batch, *tuple(tensor.shape)[1:]) for batch in profile_of(max_batch_size)]
        profile.add(tensor.name, *shapes)
    if flavour == "tensorrt_rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return CreateConfigRTX(profiles=[profile], compute_capabilities=[_PROOF_CAPABILITY])
    return CreateConfig(profiles=[profile], load_timing_cache=timing_cache or None)


def _install_logger(trt: Any) -> Any:
    """Install a logger that keeps TensorRT's last error; Polygraphy's own exception does not state the reason."""
    from polygraphy.backend.trt import util

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.last = message

    util.TRT_LOGGER = Logger()
    return util.TRT_LOGGER


def _describe(tensors: list[Any]) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.dtype.name, list(tensor.shape)) for tensor in tensors}


def _print_report(**told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
