"""What serving costs, as ratios in which the machine's speed and much of what else it does cancel out.

All are costs: less is better. Both sides of a ratio are taken turn about, in one process, within milliseconds or
within a second, and what counts is the lower quartile, which a neighbour's bursts move little.
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
from plurum.benchmarks.tools.local import LocalMembers
from plurum.benchmarks.tools.machine import processor_s
from plurum.serving import Server, ServerSettings, usable_cores
from plurum.spec import INPUT_PIXELS, read_ensemble
from plurum.voting import VotingRule, decide, softmax

__all__ = ["RATIOS", "cost_ratios"]

# Name → what it is.
RATIOS = {
    "latency": "time of one client's answer, over the members called in this process one after the other",
    "voter": "time that the voter computes for one answer, over votes taken in this process",
    "throughput": "images per second in this process, one image a core, over those served to four clients",
    "processor": "processor time of all the server's processes per image, over that of the members in this process",
}
_MODEL = "ensemble_pixels"
_ANSWERS, _WARM_UP = 150, 20
_PAIRS, _TURN_S, _CLIENTS = 12, 0.15, 4
_QUARTILE = 25
_VOTES = 4


def cost_ratios(repository: Path) -> dict[str, float]:
    """Serve `repository`, which is of members computed by ONNX Runtime, and return each of `RATIOS`.

    Raises:
        MetadataError: it has no `ensemble.json`.
        ServerError: it can't be served.
    """
    ensemble = read_ensemble(repository / "ensemble.json")
    shape = (1, ensemble.image.height, ensemble.image.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    graphs = [repository / member.name / "1" / "model.onnx" for member in ensemble.members]
    local = LocalMembers(graphs, 1)
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        return {
            **_one_by_one(server, local, pixels, ensemble.rule, len(ensemble.classes)),
            **_many_at_once(server, local, pixels),
        }


def _one_by_one(
    server: Server, local: LocalMembers, pixels: npt.NDArray[np.uint8], rule: VotingRule, classes: int
) -> dict[str, float]:
    """One client: an answer, the same members here, some votes here, and again."""
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
            members.append(_took_s(lambda: local.answer(pixels)))
            voted.append(_took_s(votes))
    return {
        "latency": _quartile(served[_WARM_UP:]) / _quartile(members[_WARM_UP:]),
        "voter": _quartile(voter[_WARM_UP:]) / (_quartile(voted[_WARM_UP:]) / _VOTES),
    }


def _many_at_once(server: Server, local: LocalMembers, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Four clients, and the same members here with an image a core, by turns."""
    cores = usable_cores()
    pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
    throughput, processor = [], []
    with InferenceServerClient(server.urls.grpc) as client:
        for _ in range(_PAIRS):
            spent, asked = _processor_s(server), _answered(client)
            rate = pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
            each = (_processor_s(server) - spent) / (_answered(client) - asked)
            began = time.process_time(), time.perf_counter()
            here = local.loops(cores, pixels, _TURN_S)
            # How many images those were follows from the rate.
            images = here * (time.perf_counter() - began[1])
            throughput.append(here / rate)
            processor.append(each / ((time.process_time() - began[0]) / images))
    return {"throughput": _quartile(throughput), "processor": _quartile(processor)}


def _took_s(question: Callable[[], object]) -> float:
    start = time.perf_counter()
    question()
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
    """Return the processor time that Triton and its models' processes have used, seconds."""
    return sum(processor_s(process) for process in server.processes())
