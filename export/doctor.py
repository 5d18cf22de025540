"""Is a model repository what it says it is? Static checks, a line each; nothing is served and nothing is changed.

Every check has a name, so that a finding can be looked up and counted. What can't be known here (TensorRT is not
installed, there is no GPU) is skipped and says so; it is no success.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict
from tritonclient.grpc import model_config_pb2 as pb

from plurum.errors import MissingExtraError, PlurumError, RepositoryError
from plurum.export.agreement import (
    contract_faults,
    copy_faults,
    expected_configs,
    file_faults,
    stated_faults,
    wiring_faults,
)
from plurum.export.checks import check_is_repository
from plurum.export.engines import engine_from_onnx, read_plan
from plurum.export.findings import (
    interface_faults,
    load_faults,
    operator_faults,
    pixel_faults,
    precision_faults,
    quantisation_faults,
)
from plurum.export.manifest import Manifest, Published, read_manifest
from plurum.export.plan_faults import build_faults, machine_faults, size_faults
from plurum.files import sha256_of
from plurum.listing import differences_from
from plurum.questions import QUESTIONS
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Finding", "check_repository"]

_FILES = {"ensemble.json", "export.json", "parity.json", QUESTIONS, "timing.cache"} | {
    f"tuning.{kind}" for kind in ("json", "csv", "png")
}


class Finding(BaseModel):
    """What one check said of one thing.

    Attributes:
        check: Its name.
        subject: A model, a file, or the repository.
        state: `skipped` where it can't be known here.
        detail: Why, in words; empty where all is well.
    """

    model_config = ConfigDict(frozen=True)

    check: str
    subject: str
    state: Literal["ok", "error", "skipped"]
    detail: str = ""


@dataclass(frozen=True)
class _Repository:
    path: Path
    ensemble: Ensemble
    manifest: Manifest
    configs: dict[str, Any]


def check_repository(path: Path, progress: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Return what every check says of the repository at `path`.

    Raises:
        RepositoryError: it is no repository of ours.
    """
    repository, findings = _opened(path)
    if repository is None:
        return findings
    for published in repository.manifest.artefacts:
        progress(published.model)
        findings += _graph_findings(repository, published)
    findings += _whole_findings(repository)
    return findings


def _opened(path: Path) -> tuple[_Repository | None, list[Finding]]:
    """Read what all checks need; what can't be read is an error itself."""
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
    return _Repository(path, ensemble, manifest, configs), findings


def _graph_findings(repository: _Repository, published: Published) -> Iterator[Finding]:
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


def _hash_faults(path: Path, published: Published) -> list[str]:
    if not path.is_file():
        return [f"{published.file} is missing"]
    if sha256_of(path) != published.sha256:
        return [f"{published.file} was changed since it was exported: its SHA-256 is another"]
    return []


def _build_finding(repository: _Repository, published: Published) -> Finding:
    """Parse and build with TensorRT-RTX, which needs no GPU."""
    try:
        engine_from_onnx(repository.path / published.file, repository.manifest.max_batch_size, "tensorrt_rtx")
    except MissingExtraError as error:
        return Finding(check="build", subject=published.model, state="skipped", detail=str(error))
    except RepositoryError as error:
        return Finding(check="build", subject=published.model, state="error", detail=str(error))
    return Finding(check="build", subject=published.model, state="ok")


def _plan_findings(repository: _Repository, published: Published, model: Any) -> Iterator[Finding]:
    graph = repository.path / published.file
    plan, name = graph.with_name("model.plan"), published.model
    if not plan.is_file():
        told = f"not built yet; on the GPU that will serve: plurum export --build-engines {repository.path}"
        yield Finding(check="plan", subject=name, state="skipped", detail=told)
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


def _whole_findings(repository: _Repository) -> Iterator[Finding]:
    path, ensemble = repository.path, repository.ensemble
    yield from _listed_findings(repository)
    graphs = {one.model: one.sha256 for one in repository.manifest.artefacts}
    members = [member.name for member in ensemble.members]
    faults = [f"member {name} has no graph" for name in members if name not in graphs]
    hashes = {graphs[name]: name for name in members if name in graphs}
    if not faults and len(hashes) < len(members):
        faults.append("two members have the very same graph, so that one of them votes twice")
    yield _finding("members", path.name, faults)
    for name, expected in expected_configs(ensemble, repository.manifest).items():
        config = repository.configs.get(name)
        if config is None:
            if not (path / name / "config.pbtxt").is_file():
                yield _finding("config", name, ["config.pbtxt is missing"])
            continue
        yield _finding("config", name, stated_faults(config, expected))
        if expected.platform == "ensemble":
            yield _finding("wiring", name, wiring_faults(config, members, repository.configs))
            yield _finding("contract", name, contract_faults(config, ensemble))
    for copy in sorted(path.glob("*/1/ensemble.json")):
        yield _finding("contract", copy.parent.parent.name, copy_faults(copy, path))


def _listed_findings(repository: _Repository) -> Iterator[Finding]:
    """Compare every file with the manifest's list, where it has one."""
    path, manifest = repository.path, repository.manifest
    if manifest.files is None:
        told = "export.json does not list the files, as exports before this version; export it again"
        yield Finding(check="files", subject=path.name, state="skipped", detail=told)
        known = _FILES | set(expected_configs(repository.ensemble, manifest))
        extra = sorted(one.name for one in path.iterdir() if one.name not in known)
    else:
        differences = differences_from(manifest.files, path, manifest.plans)
        yield _finding("files", path.name, file_faults(differences, manifest))
        extra = list(differences.extra)
    yield _finding("leftovers", path.name, [f"{name} is not of this export" for name in extra])


def _finding(check: str, subject: str, faults: list[str]) -> Finding:
    return Finding(check=check, subject=subject, state="error" if faults else "ok", detail="; ".join(faults))
