"""Build TensorRT engines from ONNX graphs: plans for Triton, or a proof that a graph builds.

Two flavours share one interface. `tensorrt`, on the GPU that will serve, builds plans. `tensorrt_rtx` needs no GPU and
proves that a graph parses and builds. Its engines start with `vtrt`; Triton does not load them, and they never go into
a repository.
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
from plurum.files import atomic_file, sha256_of, write_bytes
from plurum.spec import Metadata, Sha256, read_metadata, write_metadata

__all__ = [
    "RTX_MAGIC",
    "Engine",
    "EnginePlan",
    "Flavour",
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
        data: Engine as serialised by the builder.
        version: Version of the builder.
        inputs: Type and dims of each input by name, as parsed; -1 for a dynamic dimension.
        outputs: Type and dims of each output by name, as parsed; -1 for a dynamic dimension.
    """

    data: bytes
    version: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


class EnginePlan(Metadata):
    """Manifest of a TensorRT plan, stored beside it as `model.plan.json`.

    Attributes:
        version: Version of the file format.
        tensorrt: Version of the builder; the plan loads only with this version.
        compute_capability: Compute capability of the GPU, such as 8.9; the plan runs only on GPUs of this capability.
        onnx_sha256: SHA-256 of the ONNX graph.
        plan_sha256: SHA-256 of the plan.
        profile: Smallest, typical and largest batch.
        flags: Flags of the TensorRT network.
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
        path: ONNX file, which states the precision of every tensor.
        max_batch_size: Largest batch of the profile.
        flavour: Package that builds.
        timing_cache: File that keeps kernel timings for the next build; `tensorrt` only.

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
            report = json.loads(ended.stdout.splitlines()[-1])
        except (IndexError, ValueError) as error:
            reason = (ended.stderr.strip().splitlines() or [f"its builder exited with code {ended.returncode}"])[-1]
            raise RepositoryError(f"TensorRT parses {path} and can't build it: {reason}") from error
        if "error" in report:
            raise RepositoryError(report["error"])
        inputs, outputs = (
            {name: (kind, tuple(dims)) for name, (kind, dims) in report[key].items()} for key in ("inputs", "outputs")
        )
        if timing_cache is not None and cache.is_file():
            # Polygraphy worked on a copy, because it leaves a lock file beside the cache and does not write atomically.
            with atomic_file(timing_cache) as hidden:
                shutil.copyfile(cache, hidden)
        return Engine(built.read_bytes(), report["version"], inputs, outputs)


def plan_from_onnx(path: Path, max_batch_size: int, plan: Path, timing_cache: Path | None = None) -> EnginePlan:
    """Build the plan of the graph at `path` for this machine's GPU, and write it and its manifest.

    Raises:
        MissingExtraError: TensorRT is not installed.
        RepositoryError: this machine has no GPU, TensorRT's version differs from Triton's, or the graph does not build.
    """
    capability = gpu_capability()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        check_tensorrt(importlib.metadata.version("tensorrt"))
    engine = engine_from_onnx(path, max_batch_size, "tensorrt", timing_cache)
    # The imported library may have another version than pip's metadata states.
    check_tensorrt(engine.version)
    write_plan(engine, plan)
    manifest = EnginePlan(
        tensorrt=engine.version,
        compute_capability=capability,
        onnx_sha256=sha256_of(path),
        plan_sha256=sha256_of(plan),
        profile=profile_of(max_batch_size),
    )
    write_metadata(plan.with_name(plan.name + ".json"), manifest)
    return manifest


def write_plan(engine: Engine, plan: Path) -> None:
    """Write an engine as a plan that Triton loads.

    Raises:
        RepositoryError: TensorRT-RTX built the engine.
    """
    if engine.data.startswith(RTX_MAGIC):
        raise RepositoryError(f"{plan.name} was built by TensorRT-RTX, which Triton does not load; it was not written")
    write_bytes(plan, engine.data)


def read_plan(plan: Path) -> EnginePlan:
    """Read the manifest beside `plan`.

    Raises:
        RepositoryError: the manifest is missing or invalid.
    """
    path = plan.with_name(plan.name + ".json")
    return read_metadata(path, EnginePlan, "a plan's manifest", RepositoryError, "; build the plan again")


def build_engines(repository: Path, progress: Callable[[str], None] = lambda _: None) -> dict[str, EnginePlan]:
    """Build a TensorRT plan beside every graph of a repository exported with `--target gpu`.

    Run it on the GPU that will serve the repository.

    Args:
        repository: Repository exported with `--target gpu`.
        progress: Called with one line per step.

    Raises:
        MissingExtraError: TensorRT is not installed.
        RepositoryError: `repository` is not such a repository, this machine has no GPU, or a graph does not build.
    """
    manifest = read_manifest(repository)
    graphs = [one for one in manifest.artefacts if one.backend == "tensorrt"]
    if not graphs:
        raise RepositoryError(f"{repository} has no graph for TensorRT; export it with --target gpu")
    plans = {}
    for published in graphs:
        progress(f"{published.model}: TensorRT plan")
        graph = repository / published.file
        plans[published.model] = plan_from_onnx(
            graph, manifest.max_batch_size, graph.with_name("model.plan"), repository / "timing.cache"
        )
    return plans


def gpu_capability() -> str:
    """Return the compute capability of this machine's first GPU, such as 8.9.

    Raises:
        RepositoryError: this machine has no GPU.
    """
    try:
        ended = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RepositoryError(
            "this machine has no GPU (nvidia-smi does not run); build plans on the GPU that will serve, inside the "
            "container that will serve: plurum export --build-engines REPO"
        ) from error
    return ended.stdout.splitlines()[0].strip()
