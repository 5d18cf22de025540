"""What a bench found, as its bench.json and bench.csv state it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from plurum.errors import DataError
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["BenchResult", "Breakdown", "Case", "Load", "Measurement", "Step", "Target", "csv_from_result", "read_bench"]

Positive = Annotated[float, Field(gt=0)]


class Target(Metadata):
    """Who is asked, and how.

    Attributes:
        model: Triton's name of it.
        protocol: As perf_analyzer takes it.
    """

    model: str
    protocol: Literal["grpc", "http"]


class Load(Metadata):
    """How much is asked.

    Attributes:
        kind: `concurrency` keeps so many requests in flight; `rate` sends so many a second at random moments
            (Poisson), answered or not.
        value: Requests, or requests per second.
    """

    kind: Literal["concurrency", "rate"]
    value: Positive

    def __str__(self) -> str:
        return f"{self.value:g} in flight" if self.kind == "concurrency" else f"{self.value:g} requests/s"


class Case(Metadata):
    """One point of a sweep; two results are compared point by point."""

    target: Target
    load: Load

    def __str__(self) -> str:
        return f"{self.target.model} {self.target.protocol} {self.load}"


class Measurement(Metadata):
    """One turn of one case; an image a request.

    Attributes:
        case: What was measured.
        turn: From 1.
        images_per_s: Answered.
        latency_ms: Mean, as the client saw it.
        p50_ms: Its median; the others likewise.
        p90_ms: See above.
        p95_ms: See above.
        p99_ms: See above.
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
    """Where a request's time in one model goes: means per request, from Triton's statistics.

    Attributes:
        model: Triton's name of it.
        batch: Images per execution.
        queue_ms: Waiting for an instance.
        input_ms: Gathering inputs.
        infer_ms: Computing.
        output_ms: Handing outputs on; Triton goes on counting it when the next step of an ensemble has begun.
    """

    model: str
    batch: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def until_answer_ms(self) -> float:
        """From its queue until it has computed."""
        return self.queue_ms + self.input_ms + self.infer_ms


class Breakdown(Metadata):
    """Where the time of one case goes, all turns together with their warm-ups.

    Attributes:
        case: Whose.
        outside_ms: What the client saw beyond what the server counted: wire, client, gRPC or HTTP.
        hop_ms: What the server counted beyond the slowest way through the steps: handing outputs on to the next step
            or to the door, and waiting for whichever member is last this time.
        steps: In their order; members of an ensemble run side by side, so their times don't add up.
    """

    case: Case
    outside_ms: float
    hop_ms: float
    steps: tuple[Step, ...]


class BenchResult(Metadata):
    """All of a bench.

    Attributes:
        version: Of this format.
        asked: The repository or the servers, as named.
        images: What was sent, in words.
        seconds: Length of a turn.
        repeats: Turns of every case.
        machine: Where perf_analyzer ran; where the server was started for the bench, its machine too.
        versions: Of what was involved.
        measurements: In the order in which they were taken.
        breakdowns: One per case.
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

    def cases(self) -> list[Case]:
        """Every case once, by model, protocol and load."""
        found = {one.case for one in self.measurements}
        return sorted(found, key=lambda one: (*one.target.model_dump().values(), *one.load.model_dump().values()))

    def values(self, case: Case, field: str) -> list[float]:
        """A field of the case's measurements, by turn."""
        rows = sorted((one for one in self.measurements if one.case == case), key=lambda one: one.turn)
        return [float(getattr(one, field)) for one in rows]

    def median(self, case: Case, field: str) -> float:
        """The median over turns."""
        return statistics.median(self.values(case, field))


def read_bench(path: Path) -> BenchResult:
    """Return the result in the folder `path`, as `plurum bench --out` wrote it, or in a bench.json.

    Raises:
        DataError: there is none, or a broken one.
    """
    file = path / "bench.json" if path.is_dir() else path
    try:
        return BenchResult.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}; plurum bench REPO --out {path} writes one") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise DataError(f"{file} is no result of plurum bench: {where}: {fault['msg']}") from error


def csv_from_result(result: BenchResult) -> str:
    """Return the measurements as CSV, a row each."""
    fields = [name for name in Measurement.model_fields if name != "case"]
    rows: list[list[object]] = [["model", "protocol", "load", "value", *fields]]
    for one in result.measurements:
        case = one.case
        where = (case.target.model, case.target.protocol, case.load.kind, f"{case.load.value:g}")
        rows.append([*where, *(f"{getattr(one, name):.6g}" for name in fields)])
    return csv_from_rows(rows)
