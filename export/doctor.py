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
from plurum.export.engines import RTX_MAGIC, engine_from_onnx, gpu_capability, read_plan
from plurum.export.findings import (
    interface_faults,
    load_faults,
    operator_faults,
    pixel_faults,
    precision_faults,
    quantisation_faults,
)
from plurum.export.manifest import Manifest, Published, read_manifest
from plurum.files import sha256_of
from plurum.spec import Ensemble, read_ensemble

__all__ = ["Finding", "check_repository"]

_OURS = {"ensemble", "ensemble_pixels", "ensemble_fused", "preprocess", "voter", "labels", "fused"}
_FILES = {"ensemble.json", "export.json", "parity.json", "timing.cache"} | {
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
    if not (path / "voter" / "config.pbtxt").is_file():
        raise RepositoryError(f"{path} is no model repository of ours; plurum export RUN writes one")
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
    yield _finding("interface", name, ["no config.pbtxt"] if config is None else interface_faults(model, config))
    yield _finding("pixels", name, pixel_faults(model))
    yield _finding("precision", name, precision_faults(model, published))
    yield _finding("quantisation", name, quantisation_faults(model, published.backend))
    if published.backend == "tensorrt":
        yield _build_finding(repository, published)
        yield from _plan_findings(repository, published)


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


def _plan_findings(repository: _Repository, published: Published) -> Iterator[Finding]:
    graph = repository.path / published.file
    plan, name = graph.with_name("model.plan"), published.model
    if not plan.is_file():
        told = f"not built yet; on the GPU that will serve: plurum export --build-engines {repository.path}"
        yield Finding(check="plan", subject=name, state="skipped", detail=told)
        return
    faults = []
    try:
        about, config = read_plan(plan), repository.configs[name]
        with plan.open("rb") as file:
            if file.read(len(RTX_MAGIC)) == RTX_MAGIC:
                faults.append("built by TensorRT-RTX, which Triton does not load")
        if about.onnx_sha256 != sha256_of(graph):
            faults.append("built from another graph than the one beside it")
        if about.plan_sha256 != sha256_of(plan):
            faults.append("changed since it was built")
        if about.profile[2] < config.max_batch_size:
            faults.append(f"built for batches up to {about.profile[2]}; config.pbtxt takes {config.max_batch_size}")
        yield _finding("plan", name, faults)
        yield _machine_finding(name, about.tensorrt, about.compute_capability)
    except RepositoryError as error:
        yield _finding("plan", name, [*faults, str(error)])


def _machine_finding(name: str, tensorrt: str, capability: str) -> Finding:
    """Compare what a plan was built with, with what is here."""
    import importlib.metadata

    try:
        here = importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        told = f"built by TensorRT {tensorrt} for compute capability {capability}; there is no TensorRT here to compare"
        return Finding(check="plan's machine", subject=name, state="skipped", detail=told)
    faults = []
    if here.split(".post")[0] != tensorrt.split(".post", maxsplit=1)[0]:
        faults.append(f"built by TensorRT {tensorrt}, this is {here}: it will not load; build it again")
    try:
        if (gpu := gpu_capability()) != capability:
            faults.append(f"built for compute capability {capability}, this GPU has {gpu}; build it again")
    except RepositoryError as error:
        if not faults:
            return Finding(check="plan's machine", subject=name, state="skipped", detail=str(error))
    return _finding("plan's machine", name, faults)


def _whole_findings(repository: _Repository) -> Iterator[Finding]:
    path, ensemble, manifest = repository.path, repository.ensemble, repository.manifest
    graphs = {one.model: one.sha256 for one in manifest.artefacts}
    members = [member.name for member in ensemble.members]
    faults = [f"member {name} has no graph" for name in members if name not in graphs]
    hashes = {graphs[name]: name for name in members if name in graphs}
    if not faults and len(hashes) < len(members):
        faults.append("two members have the very same graph, so that one of them votes twice")
    yield _finding("members", path.name, faults)
    for name, config in repository.configs.items():
        if config.ensemble_scheduling.step:
            yield _finding("wiring", name, _wiring_faults(config, members, repository.configs))
    for copy in sorted(path.glob("*/1/ensemble.json")):
        same = copy.read_bytes() == (path / "ensemble.json").read_bytes()
        faults = [] if same else [f"{copy.relative_to(path)} is another contract than the repository's"]
        yield _finding("contract", copy.parent.parent.name, faults)
    known = _OURS | _FILES | set(members)
    strange = sorted(one.name for one in path.iterdir() if one.name not in known)
    yield _finding("leftovers", path.name, [f"{name} is not of this export" for name in strange])


def _wiring_faults(config: Any, members: list[str], configs: dict[str, Any]) -> list[str]:
    """Does every member reach the voter once, in the contract's order, and do all steps lead to models?"""
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    faults = [f"a step asks {name}, which is not in the repository" for name in steps if name not in configs]
    if "voter" not in steps:
        return faults
    makers = {
        tensor: step.model_name for step in config.ensemble_scheduling.step for tensor in step.output_map.values()
    }
    wired = [makers.get(steps["voter"].input_map.get(f"LOGITS_{index}", "")) for index in range(len(members))]
    faults += [f"member {name} does not reach the voter" for name in members if name not in wired]
    if not faults and wired != members:
        faults.append(f"the voter hears {', '.join(map(str, wired))}; the contract's order is {', '.join(members)}")
    return faults


def _finding(check: str, subject: str, faults: list[str]) -> Finding:
    return Finding(check=check, subject=subject, state="error" if faults else "ok", detail="; ".join(faults))
