"""From an ONNX graph to a TensorRT engine: the plan that Triton loads, or the proof that one would build.

One build path, two flavours of the same interface: `tensorrt`, on the GPU that will serve, makes plans;
`tensorrt_rtx`, which needs no GPU, proves that a graph parses and builds. What the latter makes begins with `vtrt`, is
for no Triton, and is never put into a repository.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plurum.errors import MissingExtraError, RepositoryError
from plurum.export.engines import builder
from plurum.export.engines.builder import profile_of
from plurum.export.engines.nvinfer import check_tensorrt
from plurum.export.manifest import read_manifest
from plurum.files import atomic_file, sha256_of
from plurum.regular_files import read_regular
from plurum.spec import Contract, Sha256, write_contract

__all__ = [
    "RTX_MAGIC",
    "Engine",
    "Flavour",
    "Plan",
    "build_engines",
    "engine_from_onnx",
    "gpu_capability",
    "plan_from_onnx",
    "read_plan",
    "write_plan",
]

Flavour = Literal["tensorrt", "tensorrt_rtx"]
RTX_MAGIC = b"vtrt"


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        data: What the builder serialised.
        version: Of the builder.
        inputs: By name: type and dims, -1 where free, as the parser understood them.
        outputs: Likewise.
    """

    data: bytes
    version: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


class Plan(Contract):
    """What a plan was built from, and for what; lies beside it as `model.plan.json`.

    Attributes:
        tensorrt: Version of the builder; a plan loads with no other.
        compute_capability: Of the GPU, such as 8.9; a plan runs on no other.
        onnx_sha256: Of the graph.
        plan_sha256: Of the plan.
        profile: Smallest, typical and largest batch.
        flags: Of the network.
    """

    version: int = 1
    tensorrt: str
    compute_capability: str
    onnx_sha256: Sha256
    plan_sha256: Sha256
    profile: tuple[int, int, int]
    flags: tuple[str, ...] = ("STRONGLY_TYPED",)


def engine_from_onnx(path: Path, max_batch_size: int, flavour: Flavour, timing_cache: Path | None = None) -> Engine:
    """Build the graph at `path`, strongly typed, for batches from 1 to `max_batch_size`.

    Args:
        path: The ONNX file, with its precision in it.
        max_batch_size: Largest batch of the profile.
        flavour: Whose builder.
        timing_cache: File in which what was timed is kept for the next build; `tensorrt` only.

    Raises:
        MissingExtraError: the builder, or Polygraphy, is not installed.
        RepositoryError: the graph does not parse or does not build.
    """
    for package in (flavour, "polygraphy"):
        if importlib.util.find_spec(package) is None:
            extra = "plurum[tensorrt-rtx]" if flavour == "tensorrt_rtx" else package
            raise MissingExtraError(f"package {package!r} is not installed; run: pip install '{extra}'")
    with tempfile.TemporaryDirectory() as folder:
        built, cache = Path(folder) / "engine", Path(folder) / "timing.cache"
        if timing_cache is not None and timing_cache.is_file():
            shutil.copyfile(timing_cache, cache)
        arguments = [str(path), str(built), str(max_batch_size), *([str(cache)] if timing_cache else [])]
        ended = subprocess.run(
            [sys.executable, builder.__file__, flavour, *arguments], capture_output=True, text=True, check=False
        )
        try:
            told = json.loads(ended.stdout.splitlines()[-1])
        except (IndexError, ValueError) as error:
            reason = (ended.stderr.strip().splitlines() or [f"its builder ended with code {ended.returncode}"])[-1]
            raise RepositoryError(f"TensorRT parses {path} and can't build it: {reason}") from error
        if "error" in told:
            raise RepositoryError(told["error"])
        inputs, outputs = (
            {name: (kind, tuple(dims)) for name, (kind, dims) in told[key].items()} for key in ("inputs", "outputs")
        )
        if timing_cache is not None and cache.is_file():
            # From a copy: Polygraphy leaves a lock beside it, and a repository holds no file that is half-written.
            with atomic_file(timing_cache) as hidden:
                shutil.copyfile(cache, hidden)
        return Engine(built.read_bytes(), told["version"], inputs, outputs)


def plan_from_onnx(path: Path, max_batch_size: int, plan: Path, timing_cache: Path | None = None) -> Plan:
    """Build the plan of the graph at `path` for this machine's GPU, and write it and its manifest.

    Raises:
        MissingExtraError: TensorRT is not installed.
        RepositoryError: there is no GPU here, TensorRT is another than Triton's, or the graph does not build.
    """
    capability = gpu_capability()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        check_tensorrt(importlib.metadata.version("tensorrt"))
    engine = engine_from_onnx(path, max_batch_size, "tensorrt", timing_cache)
    # What built may be another than what pip names.
    check_tensorrt(engine.version)
    write_plan(engine, plan)
    manifest = Plan(
        tensorrt=engine.version,
        compute_capability=capability,
        onnx_sha256=sha256_of(path),
        plan_sha256=sha256_of(plan),
        profile=profile_of(max_batch_size),
    )
    write_contract(plan.with_name(plan.name + ".json"), manifest)
    return manifest


def write_plan(engine: Engine, plan: Path) -> None:
    """Write an engine as a plan that Triton loads.

    Raises:
        RepositoryError: TensorRT-RTX made it.
    """
    if engine.data.startswith(RTX_MAGIC):
        raise RepositoryError(f"{plan.name} was built by TensorRT-RTX, which Triton does not load; it was not written")
    with atomic_file(plan) as hidden:
        hidden.write_bytes(engine.data)


def read_plan(plan: Path) -> Plan:
    """Return what lies beside `plan` about it.

    Raises:
        RepositoryError: nothing, or something broken.
    """
    path = plan.with_name(plan.name + ".json")
    try:
        return Plan.model_validate_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} is no plan's manifest; build the plan again: {error}") from error


def build_engines(repository: Path, progress: Callable[[str], None] = lambda _: None) -> dict[str, Plan]:
    """Finish a repository of `--target gpu` on the GPU that will serve it: a plan beside every graph for TensorRT.

    Args:
        repository: Of ours, for a GPU.
        progress: Told what is being done, a line each.

    Raises:
        MissingExtraError: TensorRT is not installed.
        RepositoryError: it is no such repository, there is no GPU here, or a graph does not build.
    """
    manifest = read_manifest(repository)
    wanted = [one for one in manifest.artefacts if one.backend == "tensorrt"]
    if not wanted:
        raise RepositoryError(f"{repository} has nothing for TensorRT; export it with --target gpu")
    plans = {}
    for one in wanted:
        progress(f"{one.model}: TensorRT plan")
        graph = repository / one.file
        plans[one.model] = plan_from_onnx(
            graph, manifest.max_batch_size, graph.with_name("model.plan"), repository / "timing.cache"
        )
    return plans


def gpu_capability() -> str:
    """Return the compute capability of this machine's first GPU, such as 8.9.

    Raises:
        RepositoryError: there is none.
    """
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RepositoryError(
            "no GPU here (nvidia-smi does not answer); plans are built on the GPU that will serve, inside the "
            "container that will serve: plurum export --build-engines REPO"
        ) from error
    return told.stdout.splitlines()[0].strip()
