"""The result of a bench, as in bench.json and bench.csv."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from plurum.errors import DataError
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = [
    "BenchLoad",
    "BenchResult",
    "Breakdown",
    "Case",
    "Measurement",
    "StageFigures",
    "Step",
    "Target",
    "csv_from_result",
    "read_bench",
]

Positive = Annotated[float, Field(gt=0)]


class Target(Metadata):
    """A model that receives requests, and the protocol.

    Attributes:
        model: Name of the model in Triton.
        protocol: Protocol, as perf_analyzer names it.
    """

    model: str
    protocol: Literal["grpc", "http"]


class BenchLoad(Metadata):
    """A load.

    Attributes:
        kind: `concurrency` keeps a number of requests in flight; `rate` sends a number of requests per second at random
            moments (Poisson), without waiting for responses.
        value: Number of requests, or of requests per second.
    """

    kind: Literal["concurrency", "rate"]
    value: Positive

    def __str__(self) -> str:
        return f"{self.value:g} in flight" if self.kind == "concurrency" else f"{self.value:g} requests/s"


class Case(Metadata):
    """One model, protocol and load of a sweep; two results are compared case by case."""

    target: Target
    load: BenchLoad

    def __str__(self) -> str:
        return f"{self.target.model} {self.target.protocol} {self.load}"


class Measurement(Metadata):
    """One turn of one case, with one image per request; latencies are those that the client sees.

    Attributes:
        case: Case that was measured.
        turn: Number of the turn, from 1.
        images_per_s: Responses per second.
        latency_ms: Mean latency, ms.
        p50_ms: Median latency, ms.
        p90_ms: 90th percentile of the latency, ms.
        p95_ms: 95th percentile of the latency, ms.
        p99_ms: 99th percentile of the latency, ms.
    """

    case: Case
    turn: int
    images_per_s: float
    latency_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


class Step(Metadata):
    """Time of a request in one model: means per request, from Triton's statistics.

    Attributes:
        model: Name of the model in Triton.
        batch: Images per execution.
        queue_ms: Time of waiting for an instance, ms.
        input_ms: Time of gathering inputs, ms.
        infer_ms: Time of computing, ms.
        output_ms: Time of handing outputs on, ms; Triton still counts it when the next step of an ensemble has started.
    """

    model: str
    batch: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def until_answer_ms(self) -> float:
        """Time from its queue until it has computed, ms."""
        return self.queue_ms + self.input_ms + self.infer_ms


class Breakdown(Metadata):
    """Time of the requests of one case, all turns together with their warm-ups.

    Attributes:
        case: Case that was measured.
        outside_ms: Time that the client sees and the server does not count, ms: wire, client, gRPC or HTTP.
        hop_ms: Time that the server counts beyond the slowest path through the steps, ms: handing outputs on to the
            next step or to the endpoint, and waiting for the member that is last this time.
        steps: Steps in their order; members of an ensemble run side by side, so their times do not add up.
    """

    case: Case
    outside_ms: float
    hop_ms: float
    steps: tuple[Step, ...]


class StageFigures(Metadata):
    """A stage of a cascade under the load of one case, all turns together.

    Attributes:
        case: Case that was measured.
        stage: Number of the stage, from 1.
        settled: Fraction of the images that the stage settled, 0 to 1.
        ms_per_image: Mean time of an image in the stage, ms; a batch shares its time. None if no image reached it.
    """

    case: Case
    stage: Annotated[int, Field(ge=1)]
    settled: Annotated[float, Field(ge=0, le=1)]
    ms_per_image: float | None


class BenchResult(Metadata):
    """Result of a bench.

    Attributes:
        version: Version of this format.
        asked: Repository or servers, as the user named them.
        images: Images that were sent, in words.
        seconds: Length of a turn.
        repeats: Number of turns of every case.
        machine: Machine of perf_analyzer, and of the server if the bench has started it.
        versions: Package versions of the measurement.
        measurements: Measurements in the order in which they were taken.
        breakdowns: One breakdown per case.
        stages: Stages of the cascade by case; empty without a cascade, or if the server's metrics are not known.
        equal: Models that were not measured, and the measured model that runs the same steps.
    """

    version: Literal[1] = 1
    asked: str
    images: str
    seconds: Positive
    repeats: int
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    measurements: tuple[Measurement, ...]
    breakdowns: tuple[Breakdown, ...]
    stages: tuple[StageFigures, ...] = ()
    equal: dict[str, str] = Field(default_factory=dict)

    def cases(self) -> list[Case]:
        """Return every case once, by model, protocol and load."""
        found = {one.case for one in self.measurements}
        return sorted(found, key=lambda one: (*one.target.model_dump().values(), *one.load.model_dump().values()))

    def values(self, case: Case, field: str) -> list[float]:
        """Return a field of the case's measurements, by turn."""
        rows = sorted((one for one in self.measurements if one.case == case), key=lambda one: one.turn)
        return [float(getattr(one, field)) for one in rows]

    def median(self, case: Case, field: str) -> float:
        """Return the median over turns of a field of the case's measurements."""
        return statistics.median(self.values(case, field))


def read_bench(path: Path) -> BenchResult:
    """Return the result in the folder `path`, as `plurum bench --out` wrote it, or in a bench.json.

    Raises:
        DataError: The file is missing or broken.
    """
    file = path / "bench.json" if path.is_dir() else path
    try:
        return BenchResult.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}; plurum bench REPO --out {path} writes one") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole file"
        raise DataError(f"{file} is not a result of plurum bench: {where}: {fault['msg']}") from error


def csv_from_result(result: BenchResult) -> str:
    """Return the measurements as CSV, one row each."""
    fields = [name for name in Measurement.model_fields if name != "case"]
    rows = []
    for one in result.measurements:
        target, load = one.case.target, one.case.load
        figures = (f"{getattr(one, name):.6g}" for name in fields)
        rows.append((target.model, target.protocol, load.kind, f"{load.value:g}", *figures))
    return csv_from_rows([("model", "protocol", "load", "value", *fields), *rows])
