"""Static checks of a model repository. Nothing is served and nothing is changed.

Every check has a name, so that findings can be looked up and counted. A check that can't run here, for example
without TensorRT or a GPU, is reported as skipped, not as passed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.errors import MissingExtraError, PlurumError, RepositoryError
from plurum.export.checks import check_is_repository
from plurum.export.engines.build import engine_from_onnx, read_plan
from plurum.export.engines.plan_faults import build_faults, machine_faults, size_faults
from plurum.export.manifest import ExportManifest, PublishedGraph, read_manifest
from plurum.export.repository.agreement import (
    config_faults,
    copy_faults,
    expected_configs,
    file_faults,
    fused_backend,
    parameter_faults,
    stage_faults,
    wiring_faults,
)
from plurum.export.repository.cards.card_files import CARD_FILES
from plurum.export.repository.configs import FUSED, stage_paths
from plurum.export.repository.decoders import decoder_command, missing_decoders
from plurum.export.repository.findings import (
    interface_faults,
    load_faults,
    operator_faults,
    pixel_faults,
    precision_faults,
    quantisation_faults,
)
from plurum.files import sha256_of
from plurum.repository.listing import differences_from
from plurum.repository.probes import PROBES_FILE
from plurum.spec import Ensemble, ImageSpec, Metadata, read_ensemble

__all__ = ["Finding", "check_repository"]

_FILES = {"ensemble.json", "export.json", "parity.json", PROBES_FILE, *CARD_FILES, "timing.cache"} | {
    f"tuning.{kind}" for kind in ("json", "csv", "png")
}


class Finding(Metadata):
    """Result of one check of one subject.

    Attributes:
        check: Name of the check.
        subject: Name of a model, of a file, or of the repository.
        state: Outcome; `skipped` if the check can't run here.
        detail: Explanation in words; empty if the check passed.
    """

    check: str
    subject: str
    state: Literal["ok", "error", "skipped"]
    detail: str = ""


@dataclass(frozen=True)
class _LoadedRepository:
    path: Path
    ensemble: Ensemble
    manifest: ExportManifest
    configs: dict[str, Any]


def check_repository(path: Path, progress: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Run every check on the repository at `path` and return the findings.

    Raises:
        RepositoryError: `path` is not a repository written by `plurum export`.
    """
    repository, findings = _read_repository(path)
    if repository is None:
        return findings
    for published in repository.manifest.artefacts:
        progress(published.model)
        findings += _graph_findings(repository, published)
    findings += _repository_findings(repository)
    return findings


def _read_repository(path: Path) -> tuple[_LoadedRepository | None, list[Finding]]:
    """Read the files that all checks need; an unreadable file is a finding."""
    check_is_repository(path)
    configs, findings = {}, []
    for file in sorted(path.glob("*/config.pbtxt")):
        try:
            configs[file.parent.name] = text_format.Parse(file.read_text(encoding="utf-8"), pb.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            findings.append(Finding(check="config", subject=file.parent.name, state="error", detail=str(error)))
    try:
        ensemble, manifest = read_ensemble(path / "ensemble.json"), read_manifest(path)
    except PlurumError as error:
        findings.append(Finding(check="manifest", subject=path.name, state="error", detail=str(error)))
        return None, findings
    return _LoadedRepository(path, ensemble, manifest, configs), findings


def _graph_findings(repository: _LoadedRepository, published: PublishedGraph) -> Iterator[Finding]:
    path, name = repository.path / published.file, published.model
    yield _finding("hash", name, _hash_faults(path, published))
    faults = load_faults(path)
    yield _finding("graph", name, faults)
    if faults:
        return
    model, config = onnx.load(path), repository.configs.get(name)
    yield _finding("operators", name, operator_faults(model))
    yield _finding("interface", name, [] if config is None else interface_faults(model, config))
    yield _finding("pixels", name, pixel_faults(model))
    yield _finding("precision", name, precision_faults(model, published))
    yield _finding("quantisation", name, quantisation_faults(model, published.backend))
    if published.backend == "tensorrt":
        yield _build_finding(repository, published)
        yield from _plan_findings(repository, published, model)


def _hash_faults(path: Path, published: PublishedGraph) -> list[str]:
    if not path.is_file():
        return [f"{published.file} is missing"]
    if sha256_of(path) != published.sha256:
        return [f"{published.file} was changed since it was exported: its SHA-256 differs"]
    return []


def _build_finding(repository: _LoadedRepository, published: PublishedGraph) -> Finding:
    """Parse and build with TensorRT-RTX, which needs no GPU."""
    try:
        engine_from_onnx(repository.path / published.file, repository.manifest.max_batch_size, "tensorrt_rtx")
    except MissingExtraError as error:
        return Finding(check="build", subject=published.model, state="skipped", detail=str(error))
    except RepositoryError as error:
        return Finding(check="build", subject=published.model, state="error", detail=str(error))
    return Finding(check="build", subject=published.model, state="ok")


def _plan_findings(repository: _LoadedRepository, published: PublishedGraph, model: Any) -> Iterator[Finding]:
    graph = repository.path / published.file
    plan, name = graph.with_name("model.plan"), published.model
    if not plan.is_file():
        detail = f"not built yet; on the GPU that will serve: plurum export --build-engines {repository.path}"
        yield Finding(check="plan", subject=name, state="skipped", detail=detail)
        return
    try:
        about = read_plan(plan)
    except RepositoryError as error:
        yield _finding("plan", name, [str(error)])
        return
    faults = build_faults(plan, about, graph, repository.manifest.max_batch_size)
    yield _finding("plan", name, faults)
    yield _finding("plan's size", name, size_faults(plan.stat().st_size, model))
    faults, unknown = machine_faults(about)
    if unknown:
        yield Finding(check="plan's machine", subject=name, state="skipped", detail=unknown)
    else:
        yield _finding("plan's machine", name, faults)


def _repository_findings(repository: _LoadedRepository) -> Iterator[Finding]:
    path, ensemble = repository.path, repository.ensemble
    yield _finding("installation", "onnxruntime", _installation_faults())
    yield from _decoder_findings(ensemble.image)
    yield from _file_findings(repository)
    graphs = {one.model: one.sha256 for one in repository.manifest.artefacts}
    members = [member.name for member in ensemble.members]
    faults = [f"member {name} has no graph" for name in members if name not in graphs]
    hashes = {graphs[name]: name for name in members if name in graphs}
    if not faults and len(hashes) < len(members):
        faults.append("two members have the same graph, which therefore votes twice")
    yield _finding("members", path.name, faults)
    for name, expected in expected_configs(ensemble, repository.manifest).items():
        config = repository.configs.get(name)
        if config is None:
            if not (path / name / "config.pbtxt").is_file():
                yield _finding("config", name, ["config.pbtxt is missing"])
            continue
        yield _finding("config", name, config_faults(config, expected))
        if name == FUSED and ensemble.cascade is not None:
            graphs_of_stages = stage_paths(ensemble, path, fused_backend(repository.manifest))
            faults = [f"{file.relative_to(path)}: {fault}" for file in graphs_of_stages for fault in load_faults(file)]
            yield _finding("cascade", name, [*stage_faults(config, expected), *faults])
        if expected.platform == "ensemble":
            yield _finding("wiring", name, wiring_faults(config, members, repository.configs))
            yield _finding("contract", name, parameter_faults(config, ensemble))
    for copy in sorted(path.glob("*/1/ensemble.json")):
        yield _finding("contract", copy.parent.parent.name, copy_faults(copy, path))


def _installation_faults() -> list[str]:
    flavours = ("onnxruntime", "onnxruntime-gpu")
    there = [name for name in flavours if any(importlib.metadata.distributions(name=name))]
    if len(there) < len(flavours):
        return []
    return ["onnxruntime and onnxruntime-gpu share a folder, and both are installed; uninstall both, then install one"]


def _decoder_findings(image: ImageSpec) -> Iterator[Finding]:
    """Check the decoders of images in the Python of a Triton on PATH, as in NVIDIA's container."""
    lacking = missing_decoders(image)
    if lacking is None:
        # Plurum installs Pillow, and pydicom if the user has it, beside the Triton of a wheel.
        if image.window is not None:
            detail = f"no tritonserver on PATH; in NVIDIA's container, first run: {decoder_command(image)}"
            yield Finding(check="decoders", subject="preprocess", state="skipped", detail=detail)
        return
    faults = [f"Triton's Python can't decode all images for this repository; run: {lacking}"] if lacking else []
    yield _finding("decoders", "preprocess", faults)


def _file_findings(repository: _LoadedRepository) -> Iterator[Finding]:
    """Compare every file with the manifest's list, if it has one."""
    path, manifest = repository.path, repository.manifest
    if manifest.files is None:
        detail = "export.json lists no files, because an older version wrote it; export again"
        yield Finding(check="files", subject=path.name, state="skipped", detail=detail)
        known = _FILES | set(expected_configs(repository.ensemble, manifest))
        extra = sorted(one.name for one in path.iterdir() if one.name not in known)
    else:
        differences = differences_from(manifest.files, path, manifest.plans)
        yield _finding("files", path.name, file_faults(differences, manifest))
        extra = list(differences.extra)
    yield _finding("leftovers", path.name, [f"{name} does not belong to this export" for name in extra])


def _finding(check: str, subject: str, faults: list[str]) -> Finding:
    return Finding(check=check, subject=subject, state="error" if faults else "ok", detail="; ".join(faults))
