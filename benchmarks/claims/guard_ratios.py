"""The cost of serving, as ratios in which the speed of the machine and most of its other work cancel out.

Lower is better for all of them. Both sides of a ratio are measured alternately, in one process, within milliseconds or
within a second. The lower quartile counts, which bursts of other work move little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput

from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.local import LocalMembers, onnx_runner, rate_in_threads
from plurum.benchmarks.tools.machine import processor_s
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.serving import Server, usable_cores
from plurum.spec import INPUT_PIXELS, read_ensemble
from plurum.voting import VotingRule, decide, softmax

__all__ = ["RATIOS", "cost_ratios"]

# Meaning of each ratio, by name.
RATIOS = {
    "latency": "latency of one client, over the members called in this process one after the other",
    "voter": "computing time of the voter for one request, over votes computed in this process",
    "throughput": "images per second in this process, one image per core, over those served to four clients",
    "processor": "processor time of all the server's processes per image, over that of the members in this process",
}
_MODEL = "ensemble_pixels"
_ANSWERS, _WARM_UP = 150, 20
_PAIRS, _TURN_S, _CLIENTS = 12, 0.15, 4
_QUARTILE = 25
_VOTES = 4


def cost_ratios(repository: Path) -> dict[str, float]:
    """Serve `repository`, whose members ONNX Runtime computes, and return each of `RATIOS`.

    Raises:
        MetadataError: The repository has no `ensemble.json`.
        ServerError: The server does not start.
    """
    ensemble = read_ensemble(repository / "ensemble.json")
    pixels = random_pixels(ensemble.image.height, ensemble.image.width)
    graphs = [repository / member.name / "1" / "model.onnx" for member in ensemble.members]
    local = LocalMembers([onnx_runner(graph, 1) for graph in graphs])
    with server_of(repository) as server:
        return {
            **_one_by_one(server, local, pixels, ensemble.rule, len(ensemble.classes)),
            **_many_at_once(server, local, pixels),
        }


def _one_by_one(
    server: Server, local: LocalMembers, pixels: npt.NDArray[np.uint8], rule: VotingRule, classes: int
) -> dict[str, float]:
    """Alternate a request of one client, the same members in this process, and some votes in this process."""
    tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    logits = np.random.default_rng(0).normal(size=(1, len(rule.weights), classes)).astype(np.float32)

    def votes() -> None:
        for _ in range(_VOTES):
            decide(softmax(logits), rule)

    served, members, voted, voter = [], [], [], []
    with InferenceServerClient(server.urls.grpc) as client:
        before = _computed_ns(client, "voter")
        for _ in range(_ANSWERS + _WARM_UP):
            served.append(_took_s(lambda: client.infer(_MODEL, [tensor])))
            after = _computed_ns(client, "voter")
            voter.append((after - before) / 1e9)
            before = after
            members.append(_took_s(lambda: local.predict(pixels)))
            voted.append(_took_s(votes))
    return {
        "latency": _quartile(served[_WARM_UP:]) / _quartile(members[_WARM_UP:]),
        "voter": _quartile(voter[_WARM_UP:]) / (_quartile(voted[_WARM_UP:]) / _VOTES),
    }


def _many_at_once(server: Server, local: LocalMembers, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Alternate four clients and the same members in this process with one image per core."""
    cores = usable_cores()
    pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
    throughput, processor = [], []
    with InferenceServerClient(server.urls.grpc) as client:
        for _ in range(_PAIRS):
            spent, count = _processor_s(server), _answered(client)
            rate = pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
            each = (_processor_s(server) - spent) / (_answered(client) - count)
            start = time.process_time(), time.perf_counter()
            here = rate_in_threads([local] * cores, pixels, _TURN_S)
            # The number of images follows from the rate.
            images = here * (time.perf_counter() - start[1])
            throughput.append(here / rate)
            processor.append(each / ((time.process_time() - start[0]) / images))
    return {"throughput": _quartile(throughput), "processor": _quartile(processor)}


def _took_s(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quartile(values: list[float]) -> float:
    return float(np.percentile(values, _QUARTILE))


def _statistics(client: Any, model: str) -> Any:
    (found,) = client.get_inference_statistics(model).model_stats
    return found


def _computed_ns(client: Any, model: str) -> int:
    return int(_statistics(client, model).inference_stats.compute_infer.ns)


def _answered(client: Any) -> int:
    return int(_statistics(client, _MODEL).inference_stats.success.count)


def _processor_s(server: Server) -> float:
    """Return the processor time that Triton and the processes of its models have used, seconds."""
    return sum(processor_s(process) for process in server.processes())
