"""Fake of TensorRT's Python package, of the version in `FAKE_TENSORRT`: 10.13.2.6 or 11.0.1.3.

It has the differences that matter to a build: from 11 on, networks are always strongly typed without a flag, and
BuilderFlag.FP16 is missing. The engine is the requested build as JSON.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

__version__ = os.environ.get("FAKE_TENSORRT", "10.13.2.6")
_WEAK = int(__version__.split(".", maxsplit=1)[0]) < 11


class _NetworkFlag10(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class _NetworkFlag11(enum.IntEnum):
    EXPLICIT_BATCH = 0


class _BuilderFlag10(enum.IntEnum):
    FP16 = 0
    TF32 = 7


class _BuilderFlag11(enum.IntEnum):
    TF32 = 7


NetworkDefinitionCreationFlag: type[enum.IntEnum] = _NetworkFlag10 if _WEAK else _NetworkFlag11
BuilderFlag: type[enum.IntEnum] = _BuilderFlag10 if _WEAK else _BuilderFlag11
DeviceType = enum.IntEnum("DeviceType", {"GPU": 0, "DLA": 1})
DataType = enum.IntEnum("DataType", {"FLOAT": 0, "UINT8": 5})


class ILogger:
    """Base class of loggers."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger(ILogger):
    """Logger with the default severity."""


def init_libnvinfer_plugins(_logger: ILogger, _namespace: str) -> bool:
    return True


class Network:
    """Network with one input and one output."""

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.num_inputs = self.num_outputs = self.num_layers = 1

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def get_input(self, _index: int) -> Any:
        return SimpleNamespace(name="PIXELS", shape=(-1, 8, 8, 3), dtype=DataType.UINT8, is_shape_tensor=False)

    def get_output(self, _index: int) -> Any:
        return SimpleNamespace(name="LOGITS", shape=(-1, 2), dtype=DataType.FLOAT, is_shape_tensor=False)


class OnnxParser:
    """Parser that accepts files by name."""

    def __init__(self, _network: Network, logger: Any) -> None:
        self.logger, self.num_errors = logger, 0

    def parse_from_file(self, path: str) -> bool:
        if "unparsable" not in path:
            return True
        self.num_errors = 1
        self.logger.log(ILogger.ERROR, "In node 3: no importer")
        return False

    def get_error(self, _index: int) -> str:
        return "In node 3: no importer"


class Profile:
    """Optimisation profile: shapes by input."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]

    def get_shape(self, name: str) -> Any:
        return self.shapes[name]

    def __bool__(self) -> bool:
        return True


class Cache:
    """Timing cache."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, _other: Cache, ignore_mismatch: bool) -> bool:
        return ignore_mismatch

    def serialize(self) -> memoryview:
        return memoryview(self.data + b"+")


class Config:
    """Builder config."""

    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags = 0
        self.int8_calibrator = None
        self.DLA_core, self.default_device_type = -1, DeviceType.GPU

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(bytes(data))

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.cache, self.mismatch = cache, ignore_mismatch
        return True

    def get_timing_cache(self) -> Cache:
        return self.cache

    def get_flag(self, flag: int) -> bool:
        return bool(self.flags >> flag & 1)

    def set_flag(self, flag: int) -> None:
        self.flags |= 1 << flag


class Builder:
    """Builder that accepts networks by name."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if os.environ.get("FAKE_TENSORRT_BUILDS") == "no":
            self.logger.log(ILogger.ERROR, "no tactic")
            return None
        (profile,) = config.profiles
        told = {"network": network.flags, "profile": profile.shapes, "cache": config.cache.data.decode()}
        return json.dumps(told).encode()
