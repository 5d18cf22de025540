"""What a Triton server counts of itself, and where a request's time goes by that."""

from __future__ import annotations

import importlib
import json
from typing import Any

from plurum.benchmarks.bench.result import Breakdown, Case, Step
from plurum.errors import ServerError, needs_extra
from plurum.spec import ImageSpec

__all__ = ["Counts", "Observer", "breakdown_of"]

# Sums since the server's start, by model: requests, images, executions, and nanoseconds by what they went to.
Counts = dict[str, dict[str, int]]
_PARTS = ("success", "queue", "compute_input", "compute_infer", "compute_output")
_QUESTION_S = 20.0


class Observer:
    """Asks a server about itself over either protocol, to be used in a `with` block."""

    def __init__(self, protocol: str, url: str) -> None:
        with needs_extra("client", f"tritonclient.{protocol}"):
            triton = importlib.import_module(f"tritonclient.{protocol}")
        self._url = url
        self._question: dict[str, Any] = {"as_json": True, "client_timeout": _QUESTION_S} if protocol == "grpc" else {}
        options = {} if protocol == "grpc" else {"network_timeout": _QUESTION_S}
        self._client = triton.InferenceServerClient(url, **options)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """Return Triton's version."""
        return str(self._ask("get_server_metadata")["version"])

    def is_ready(self, model: str) -> bool:
        """Whether `model` is served."""
        # The one call whose answer has no JSON form.
        question = {name: value for name, value in self._question.items() if name != "as_json"}
        return bool(self._ask("is_model_ready", model, question=question))

    def config(self, model: str) -> dict[str, Any]:
        """Return the config of `model` with the names that config.pbtxt has."""
        answer = self._ask("get_model_config", model)
        config: dict[str, Any] = answer.get("config", answer)
        return config

    def image(self, models: tuple[str, ...]) -> ImageSpec:
        """Return what images are brought to, from the metadata of the first ensemble among `models`.

        Raises:
            ServerError: none of them carries one.
        """
        for model in models:
            if parameter := self.config(model).get("parameters", {}).get("contract"):
                return ImageSpec.model_validate(json.loads(parameter["string_value"])["image"])
        raise ServerError(f"{self._url} serves no ensemble of ours: none of {', '.join(models)} has its metadata")

    def counts(self) -> Counts:
        """Return what every model has counted until now, its versions together."""
        found: Counts = {}
        for one in self._ask("get_inference_statistics").get("model_stats", ()):
            sums = found.setdefault(one["name"], dict.fromkeys(("requests", "images", "executions", *_PARTS), 0))
            parts = one.get("inference_stats", {})
            sums["requests"] += int(parts.get("success", {}).get("count", 0))
            sums["images"] += int(one.get("inference_count", 0))
            sums["executions"] += int(one.get("execution_count", 0))
            for part in _PARTS:
                sums[part] += int(parts.get(part, {}).get("ns", 0))
        return found

    def _ask(self, method: str, *arguments: object, question: dict[str, Any] | None = None) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(*arguments, **(self._question if question is None else question))
        # What the HTTP client raises where nobody listens.
        except (InferenceServerException, OSError) as error:
            raise ServerError(f"{self._url} does not answer: {error}; is a server there?") from error


def breakdown_of(case: Case, counts: Counts, config: dict[str, Any], latency_ms: float) -> Breakdown:
    """Return where the time of `case` went.

    Args:
        case: Whose.
        counts: What was counted during its turns.
        config: Of the model that was asked.
        latency_ms: As the client saw it, the mean.

    Raises:
        ServerError: the server has counted none of its requests.
    """
    model = case.target.model
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    names = [step["model_name"] for step in steps] or [model]
    if missing := [name for name in (model, *names) if not counts.get(name, {}).get("requests")]:
        raise ServerError(f"the server has counted no request of {missing[0]}; does something balance the load?")
    own = counts[model]
    server_ms = own["success"] / own["requests"] / 1e6
    found = tuple(_step(name, counts[name]) for name in names)
    way_ms = {step.model: step.until_answer_ms for step in found}
    path_ms = _longest_ms(steps, way_ms) if steps else way_ms[model]
    return Breakdown(
        case=case,
        outside_ms=max(0.0, latency_ms - server_ms),
        hop_ms=max(0.0, server_ms - path_ms),
        steps=found,
    )


def _step(model: str, counts: dict[str, int]) -> Step:
    queue, gather, infer, hand = (counts[part] / counts["requests"] / 1e6 for part in _PARTS[1:])
    batch = counts["images"] / max(1, counts["executions"])
    return Step(model=model, batch=batch, queue_ms=queue, input_ms=gather, infer_ms=infer, output_ms=hand)


def _longest_ms(steps: list[dict[str, Any]], way_ms: dict[str, float]) -> float:
    """Return how long the slowest way through an ensemble takes: a step begins when all its inputs are there."""
    there: dict[str, float] = {}
    waiting = list(steps)
    made = {tensor for step in steps for tensor in step["output_map"].values()}
    while waiting:
        ready = [step for step in waiting if all(name in there or name not in made for name in _inputs(step))]
        for step in ready:
            end = max((there.get(name, 0.0) for name in _inputs(step)), default=0.0) + way_ms[step["model_name"]]
            there |= dict.fromkeys(step["output_map"].values(), end)
        waiting = [step for step in waiting if step not in ready]
    return max(there.values())


def _inputs(step: dict[str, Any]) -> list[str]:
    return list(step["input_map"].values())
