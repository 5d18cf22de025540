"""Measure every model, protocol and load in turn, repeatedly, as `plurum bench` does."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from plurum.benchmarks.bench.observed import Observer, breakdown_of
from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer
from plurum.benchmarks.bench.result import BenchLoad, BenchResult, Case, Measurement, Target
from plurum.benchmarks.bench.stages import StageCounts, count_stages, stage_figures
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.requests import encoded_from_folder, input_data, synthetic_images
from plurum.benchmarks.tools.turns import in_turns
from plurum.errors import ServerError
from plurum.settings.benchmarks import BenchSettings
from plurum.spec import ImageSpec

__all__ = ["PUBLIC_MODELS", "equal_models", "sweep"]

Protocol = Literal["grpc", "http"]

PUBLIC_MODELS = ("ensemble", "ensemble_pixels", "ensemble_fused")
_WARM_UP_S = 1.0


def sweep(
    analyzer: PerfAnalyzer,
    urls: dict[Protocol, str],
    plan: BenchSettings,
    asked: str,
    versions: dict[str, str],
    progress: Callable[[str], None],
) -> BenchResult:
    """Carry out a plan, after a warm-up of each target; the order of cases changes every turn.

    Args:
        analyzer: Load generator.
        urls: HOST:PORT by protocol; each is measured.
        plan: Plan of the bench.
        asked: Repository or servers, as the result names them.
        versions: Package versions; those of perf_analyzer and Triton are added.
        progress: Receives one line about each step.

    Raises:
        ServerError: The server does not respond, or does not serve a model.
        DataError: There are no images, or one cannot be read.
    """
    # Before the load of this measurement.
    state = machine()
    with ExitStack() as stack:
        observer = stack.enter_context(Observer(*next(iter(urls.items()))))
        configs = {model: observer.config(model) for model in _served(observer, plan.model)}
        equal = {} if plan.model else equal_models(configs)
        for model, other in equal.items():
            progress(f"{model} runs what {other} runs, and is not measured again")
            del configs[model]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plurum_bench_")))
        data, images = _requests(observer, configs, plan.images, folder)

        def measure(target: Target, load: BenchLoad, seconds: float) -> dict[str, float]:
            return analyzer.measure(target, urls[target.protocol], load, data[target.model], seconds)

        targets = [Target(model=model, protocol=protocol) for model in configs for protocol in urls]
        for target in targets:
            progress(f"warm-up: {target.model} {target.protocol}")
            # Every instance gets requests: as many in flight as the sweep will have, and at least two.
            measure(target, BenchLoad(kind="concurrency", value=max([2, *plan.concurrency])), _WARM_UP_S)
        cases = [Case(target=target, load=load) for target in targets for load in _loads(plan)]
        measurements = list[Measurement]()
        counts: dict[Case, dict[str, Counter[str]]] = {case: {} for case in cases}
        stages = {case: StageCounts() for case in cases}
        for number, (turn, case) in enumerate(in_turns(cases, plan.repeats)):
            progress(f"turn {turn} of {plan.repeats}, {number % len(cases) + 1} of {len(cases)}: {case}")
            before, stages_before = observer.counts(), count_stages(plan.metrics)
            measurements.append(Measurement(case=case, turn=turn, **measure(case.target, case.load, plan.seconds)))
            for model, sums in observer.counts().items():
                total = counts[case].setdefault(model, Counter())
                total.update(sums)
                total.subtract(before.get(model, {}))
            stages[case].update(count_stages(plan.metrics))
            stages[case].subtract(stages_before)
        latencies = {case: fmean(one.latency_ms for one in measurements if one.case == case) for case in cases}
        return BenchResult(
            asked=asked,
            images=images,
            seconds=plan.seconds,
            repeats=plan.repeats,
            machine=state,
            versions={**versions, "perf_analyzer": analyzer.version, "triton_server": observer.version()},
            measurements=tuple(measurements),
            breakdowns=tuple(
                breakdown_of(case, counts[case], configs[case.target.model], latencies[case]) for case in cases
            ),
            stages=tuple(one for case in cases for one in stage_figures(case, stages[case])),
            equal=equal,
        )


def _loads(plan: BenchSettings) -> list[BenchLoad]:
    in_flight = [BenchLoad(kind="concurrency", value=value) for value in plan.concurrency]
    return list(dict.fromkeys([*in_flight, *(BenchLoad(kind="rate", value=value) for value in plan.rate)]))


def _served(observer: Observer, models: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(model for model in models or PUBLIC_MODELS if observer.is_ready(model))
    if missing := [model for model in models if model not in found]:
        raise ServerError(f"the server does not serve {', '.join(missing)}; --model takes a name of its repository")
    if not found:
        raise ServerError(f"the server serves none of {', '.join(PUBLIC_MODELS)}; name a model with --model")
    return found


def equal_models(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the models that run the same steps as an earlier one, and which; a fused ensemble has two names.

    Args:
        configs: Configs by model.
    """
    found, first = dict[str, str](), list[str]()
    for model, config in configs.items():
        steps = config.get("ensemble_scheduling")
        other = next((one for one in first if steps and configs[one].get("ensemble_scheduling") == steps), None)
        if other is None:
            first.append(model)
        else:
            found[model] = other
    return found


def _requests(
    observer: Observer, configs: dict[str, dict[str, Any]], images: Path | None, folder: Path
) -> tuple[dict[str, Path], str]:
    """Write each model's requests into `folder`; return the files by model, and a description of the images."""
    spec = observer.image((*configs, *filter(observer.is_ready, PUBLIC_MODELS)))
    encoded = synthetic_images(spec) if images is None else encoded_from_folder(images)
    files = {}
    for model, config in configs.items():
        tensor = config["input"][0]["name"]
        files[model] = folder / f"{tensor}.json"
        if not files[model].exists():
            files[model].write_text(input_data(encoded, spec, tensor), encoding="utf-8")
    return files, _words(encoded, images, spec)


def _words(encoded: list[bytes], images: Path | None, spec: ImageSpec) -> str:
    size_kb = sum(map(len, encoded)) / len(encoded) / 1000
    what = f"synthetic JPEGs of {spec.width} x {spec.height} pixels" if images is None else f"images of {images}"
    return f"{len(encoded)} {what}, {size_kb:.1f} kB each on average"
