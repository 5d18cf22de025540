"""Settings of `plurum bench`, `plurum tune` and `plurum compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from plurum.settings.options import NOT_AN_OPTION, Option, Settings

__all__ = ["COMPARED_EPOCHS", "BenchSettings", "CompareSettings", "TuneSettings"]

# Training epochs of `plurum compare` unless the user gives others.
COMPARED_EPOCHS = 8
_MEASURING = Option(panel="Measuring")


def _numbers_from_text(kind: type[int] | type[float], given: object) -> object:
    """Return the numbers of a comma-separated text; pass other values on."""
    if not isinstance(given, str):
        return given
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not all(part.replace(".", "", kind is float).isdecimal() and float(part) for part in parts):
        raise ValueError(f"expected comma-separated {'integers' if kind is int else 'numbers'} above 0")
    return tuple(map(kind, parts))


_Integers = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(partial(_numbers_from_text, int)), Option(type=str)
]
_Numbers = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(partial(_numbers_from_text, float)), Option(type=str)
]


class BenchSettings(Settings):
    """Settings of a load test.

    Attributes:
        model: Model to measure; repeat for several. By default, those of `ensemble`, `ensemble_pixels` and
            `ensemble_fused` that are served.
        protocol: Protocol to measure with REPO.
        concurrency: Comma-separated numbers of requests in flight.
        rate: Comma-separated request rates per second, with Poisson arrivals, such as `10,20`.
        images: Folder of images to send. By default, synthetic JPEGs.
        seconds: Seconds per measurement.
        repeats: Measurements of each combination of model, protocol and load.
        metrics: With --url: URL of the server's metrics, such as http://127.0.0.1:8002/metrics, to tell what the stages
            of a cascade do.
    """

    model: tuple[str, ...] = ()
    protocol: Literal["grpc", "http", "both"] = "grpc"
    concurrency: _Integers = (1, 2, 4, 8)
    rate: _Numbers = ()
    images: Path | None = None
    seconds: Annotated[float, Field(ge=0.3)] = 5.0
    repeats: Annotated[int, Field(ge=1)] = 3
    metrics: Annotated[str | None, Field(pattern="^https?://")] = None

    @model_validator(mode="after")
    def _check_loads(self) -> BenchSettings:
        if not self.concurrency and not self.rate:
            raise ValueError("--concurrency, --rate: expected at least one load, got none")
        return self


class TuneSettings(Settings):
    """Settings of a search for the fastest configuration.

    Attributes:
        latency_ms: Limit of the 99th percentile latency in ms. By default, none: the highest throughput wins.
        model: Model to measure: `ensemble` takes encoded images, `ensemble_pixels` decoded ones.
        clients: Comma-separated numbers of requests in flight, such as `4,8`. By default, 4 per core; with a
            latency limit, also fewer.
        images: Folder of images to send. By default, synthetic JPEGs.
        seconds: Seconds of the first, shortest measurements.
        turns: Final measurements of the repository before and after tuning.
    """

    latency_ms: Annotated[float | None, Field(gt=0)] = None
    model: Literal["ensemble", "ensemble_pixels"] = "ensemble"
    clients: _Integers = ()
    images: Path | None = None
    seconds: Annotated[float, Field(ge=0.1)] = 2.0
    turns: Annotated[int, Field(ge=1)] = 5


class CompareSettings(Settings):
    """Settings of a comparison of architectures, without those of training.

    Attributes:
        max_members: Largest number of members in an ensemble.
        batch_size: Images per batch where throughput is measured.
        rounds: Speed measurements per architecture and runtime.
        seconds: Seconds per speed measurement.
        draws: Bootstrap resamples, by patient, for the confidence intervals.
        seed: Random seed of training and bootstrap.
    """

    max_members: Annotated[int, Field(ge=1, le=20), _MEASURING] = 5
    batch_size: Annotated[int, Field(ge=1, le=1024), NOT_AN_OPTION] = 16
    rounds: Annotated[int, Field(ge=1, le=1000), _MEASURING] = 5
    seconds: Annotated[float, Field(gt=0, le=600), _MEASURING] = 0.3
    draws: Annotated[int, Field(ge=100, le=100_000), _MEASURING] = 1000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
