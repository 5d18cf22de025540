"""The counters of a Triton server, and where the time of a request goes according to them."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from plurum.benchmarks.bench.result import Breakdown, Case, Step
from plurum.errors import ServerError, needs_extra
from plurum.spec import ImageSpec

__all__ = ["Counts", "Observer", "breakdown_of"]

# Sums since the server's start by model: requests, images, executions, and nanoseconds of each part.
Counts = Mapping[str, Mapping[str, int]]
_PARTS = ("success", "queue", "compute_input", "compute_infer", "compute_output")
_TIMEOUT_S = 20.0


class Observer:
    """Reads metadata and statistics of a server over either protocol, to be used in a `with` block."""

    def __init__(self, protocol: str, url: str) -> None:
        with needs_extra("client", f"tritonclient.{protocol}"):
            triton = importlib.import_module(f"tritonclient.{protocol}")
        self._url = url
        self._options: dict[str, Any] = {"as_json": True, "client_timeout": _TIMEOUT_S} if protocol == "grpc" else {}
        options = {} if protocol == "grpc" else {"network_timeout": _TIMEOUT_S}
        self._client = triton.InferenceServerClient(url, **options)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """Return Triton's version."""
        return str(self._call("get_server_metadata")["version"])

    def is_ready(self, model: str) -> bool:
        """Return True if `model` is served."""
        # The only call whose response has no JSON form.
        options = {name: value for name, value in self._options.items() if name != "as_json"}
        return bool(self._call("is_model_ready", model, options=options))

    def config(self, model: str) -> dict[str, Any]:
        """Return the config of `model`, with the field names of config.pbtxt."""
        response = self._call("get_model_config", model)
        config: dict[str, Any] = response.get("config", response)
        return config

    def image(self, models: tuple[str, ...]) -> ImageSpec:
        """Return the image specification in the metadata of the first ensemble among `models`.

        Raises:
            ServerError: None of the models has metadata.
        """
        for model in models:
            if parameter := self.config(model).get("parameters", {}).get("contract"):
                return ImageSpec.model_validate(json.loads(parameter["string_value"])["image"])
        raise ServerError(f"{self._url} serves no ensemble of Plurum: none of {', '.join(models)} has its metadata")

    def counts(self) -> Counts:
        """Return the counters of every model so far, summed over its versions."""
        found: dict[str, Counter[str]] = {}
        for one in self._call("get_inference_statistics").get("model_stats", ()):
            sums, parts = found.setdefault(one["name"], Counter()), one.get("inference_stats", {})
            sums["requests"] += int(parts.get("success", {}).get("count", 0))
            sums["images"] += int(one.get("inference_count", 0))
            sums["executions"] += int(one.get("execution_count", 0))
            for part in _PARTS:
                sums[part] += int(parts.get(part, {}).get("ns", 0))
        return found

    def _call(self, method: str, *arguments: object, options: dict[str, Any] | None = None) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(*arguments, **(self._options if options is None else options))
        # The HTTP client raises OSError if nothing listens.
        except (InferenceServerException, OSError) as error:
            raise ServerError(f"no response from {self._url}: {error}; is a server running there?") from error


def breakdown_of(case: Case, counts: Counts, config: dict[str, Any], latency_ms: float) -> Breakdown:
    """Return where the time of `case` goes.

    Args:
        case: Case to analyse.
        counts: Counters of its turns.
        config: Config of the model that received the requests.
        latency_ms: Mean latency as the client sees it, ms.

    Raises:
        ServerError: The server has counted none of the requests.
    """
    model = case.target.model
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    names = [step["model_name"] for step in steps] or [model]
    if missing := [name for name in (model, *names) if not counts.get(name, {}).get("requests")]:
        raise ServerError(f"the server has counted no request of {missing[0]}; does something balance the load?")
    sums = counts[model]
    server_ms = sums["success"] / sums["requests"] / 1e6
    found = tuple(_step(name, counts[name]) for name in names)
    step_ms = {step.model: step.until_answer_ms for step in found}
    path_ms = _longest_ms(steps, step_ms) if steps else step_ms[model]
    outside_ms, hop_ms = (max(0.0, ms) for ms in (latency_ms - server_ms, server_ms - path_ms))
    return Breakdown(case=case, outside_ms=outside_ms, hop_ms=hop_ms, steps=found)


def _step(model: str, counts: Mapping[str, int]) -> Step:
    queue, gather, infer, hand = (counts[part] / counts["requests"] / 1e6 for part in _PARTS[1:])
    batch = counts["images"] / max(1, counts["executions"])
    return Step(model=model, batch=batch, queue_ms=queue, input_ms=gather, infer_ms=infer, output_ms=hand)


def _longest_ms(steps: list[dict[str, Any]], step_ms: dict[str, float]) -> float:
    """Return the time of the slowest path through an ensemble, ms: a step starts when all its inputs exist."""
    made_by = {tensor: step for step in steps for tensor in step["output_map"].values()}

    def end_ms(step: dict[str, Any]) -> float:
        inputs = [made_by[tensor] for tensor in step["input_map"].values() if tensor in made_by]
        return step_ms[step["model_name"]] + max(map(end_ms, inputs), default=0.0)

    return max(map(end_ms, steps))
