"""Measure every model, protocol and load in turn, repeatedly, as `plurum bench` does."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plurum.benchmarks.bench.observed import Counts, Observer, breakdown_of
from plurum.benchmarks.bench.perf_analyzer import PerfAnalyzer
from plurum.benchmarks.bench.result import BenchLoad, BenchResult, Breakdown, Case, Measurement, Target
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.requests import encoded_from_folder, input_data, synthetic_images
from plurum.errors import ServerError
from plurum.spec import ImageSpec

__all__ = ["PUBLIC_MODELS", "Sweep", "sweep"]

Protocol = Literal["grpc", "http"]

PUBLIC_MODELS = ("ensemble", "ensemble_pixels", "ensemble_fused")
_WARM_UP_S = 1.0


@dataclass(frozen=True)
class Sweep:
    """Plan of a bench.

    Attributes:
        models: Names of models in Triton; if empty, those of `PUBLIC_MODELS` that are served.
        loads: Loads, one after the other.
        images: Folder with images to send; None for synthetic images.
        seconds: Length of a turn.
        repeats: Number of turns of every case.
    """

    models: tuple[str, ...]
    loads: tuple[BenchLoad, ...]
    images: Path | None
    seconds: float
    repeats: int


def sweep(
    analyzer: PerfAnalyzer,
    urls: dict[Protocol, str],
    plan: Sweep,
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
        models = _served(observer, plan.models)
        configs = {model: observer.config(model) for model in models}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plurum_bench_")))
        data, images = _requests(observer, configs, plan.images, folder)
        runner = _Runner(analyzer, urls, observer, data, configs)
        targets = [Target(model=model, protocol=protocol) for model in models for protocol in urls]
        for target in targets:
            progress(f"warm-up: {target.model} {target.protocol}")
            runner.warm_up(target, plan.loads)
        cases = [Case(target=target, load=load) for target in targets for load in plan.loads]
        order = random.Random(0)  # noqa: S311 (an order, not a secret)
        for turn in range(1, plan.repeats + 1):
            # Another order in each turn, so that other work on the machine does not always hit the same case.
            for number, case in enumerate(order.sample(cases, len(cases)), start=1):
                progress(f"turn {turn} of {plan.repeats}, {number} of {len(cases)}: {case}")
                runner.measure(case, turn, plan.seconds)
        return BenchResult(
            asked=asked,
            images=images,
            seconds=plan.seconds,
            repeats=plan.repeats,
            machine=state,
            versions={**versions, "perf_analyzer": analyzer.version, "triton_server": observer.version()},
            measurements=tuple(runner.measurements),
            breakdowns=tuple(runner.breakdown(case) for case in cases),
        )


class _Runner:
    """Takes turns, and keeps their figures."""

    def __init__(
        self,
        analyzer: PerfAnalyzer,
        urls: dict[Protocol, str],
        observer: Observer,
        data: dict[str, Path],
        configs: dict[str, dict[str, Any]],
    ) -> None:
        self._analyzer, self._urls, self._observer = analyzer, urls, observer
        self._data, self._configs = data, configs
        self._counts: dict[Case, Counts] = {}
        self.measurements: list[Measurement] = []

    def warm_up(self, target: Target, loads: tuple[BenchLoad, ...]) -> None:
        """Send requests to every instance: as many in flight as the sweep will have, and at least two."""
        most = max((load.value for load in loads if load.kind == "concurrency"), default=2.0)
        self._measure(target, BenchLoad(kind="concurrency", value=max(2.0, most)), _WARM_UP_S)

    def measure(self, case: Case, turn: int, seconds: float) -> None:
        """Take one turn."""
        before = self._observer.counts()
        figures = self._measure(case.target, case.load, seconds)
        after = self._observer.counts()
        self.measurements.append(Measurement(case=case, turn=turn, **figures))
        sums = self._counts.setdefault(case, {})
        for model, counts in after.items():
            total = sums.setdefault(model, dict.fromkeys(counts, 0))
            for name, value in counts.items():
                total[name] += value - before.get(model, {}).get(name, 0)

    def breakdown(self, case: Case) -> Breakdown:
        """Return where the time of all its turns goes."""
        turns = [one.latency_ms for one in self.measurements if one.case == case]
        return breakdown_of(
            case, self._counts[case], self._configs[case.target.model], latency_ms=sum(turns) / len(turns)
        )

    def _measure(self, target: Target, load: BenchLoad, seconds: float) -> dict[str, float]:
        url = self._urls[target.protocol]
        return self._analyzer.measure(target, url, load, self._data[target.model], seconds)


def _served(observer: Observer, models: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(model for model in models or PUBLIC_MODELS if observer.is_ready(model))
    if missing := [model for model in models if model not in found]:
        raise ServerError(f"the server does not serve {', '.join(missing)}; --model takes a name of its repository")
    if not found:
        raise ServerError(f"the server serves none of {', '.join(PUBLIC_MODELS)}; name a model with --model")
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
