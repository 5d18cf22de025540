"""Write the model folders of a repository: configs, and Python models with the code that they import."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.graphs.fused import fused_from_onnx
from plurum.export.graphs.runtimes import Artefact
from plurum.export.graphs.stages import stages_from_onnx, whole_from_onnx
from plurum.export.repository.audits import share_audit_draw, write_audit_draw
from plurum.export.repository.configs import (
    FUSED,
    LABELS,
    chain_configs,
    fused_configs,
    has_stage_models,
    member_config,
    stage_paths,
    text_of,
)
from plurum.export.settings import Backend, Form, Precision
from plurum.onnx_graphs.costs import multiply_adds
from plurum.spec import Ensemble, write_metadata
from plurum.voting import VotingRule, cascade_from_ensemble

__all__ = ["add_chain_models", "add_fused_models", "state_precisions"]

# Multiply–adds from which a graph takes so long on a CPU, some milliseconds per image, that batches only add waiting.
_LONG = 100_000_000
# Files and folders of the package that are copied beside each Python model.
_SOURCES = {
    "preprocess": (("model_repository", "preprocess", "model.py"), ("images",)),
    "voter": (
        ("model_repository", "voter", "model.py"),
        ("model_repository", "voter", "metrics.py"),
        ("model_repository", "voter", "audit.py"),
        ("voting",),
        ("predictions", "outputs.py"),
    ),
    LABELS: (
        ("model_repository", "labels", "model.py"),
        ("model_repository", "labels", "labels.py"),
        ("model_repository", "voter", "metrics.py"),
        ("model_repository", "voter", "audit.py"),
        ("voting",),
    ),
    # Only where the stages of a cascade are models of their own.
    FUSED: (
        ("model_repository", "cascade", "model.py"),
        ("serving", "backends", "graph_model.py"),
        ("serving", "backends", "cores.py"),
        ("onnx_graphs", "stages.py"),
    ),
}


def add_fused_models(
    ensemble: Ensemble,
    graphs: Sequence[Path],
    repository: Path,
    max_batch_size: int,
    backend: Backend,
    rule: VotingRule | None = None,
) -> Path:
    """Add the fused graph, its labels and their Triton ensemble to `repository`; return the graph's path.

    With a cascade, a graph per stage stands beside it. Where stages are models, there is no fused graph, and the path
    is that of the last stage, the whole vote.

    Args:
        ensemble: Metadata of the ensemble.
        graphs: ONNX files of the members, in their order.
        repository: The repository.
        max_batch_size: Largest batch of every model.
        backend: Backend that serves the graph.
        rule: Voting rule in the graph; None takes the ensemble's.
    """
    path = repository / FUSED / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    cascade, stages = cascade_from_ensemble(ensemble.model_dump()), stage_paths(ensemble, repository, backend)
    are_models = has_stage_models(ensemble, backend)
    if cascade is None:
        fused_from_onnx(graphs, rule or ensemble.rule, len(ensemble.classes), path)
    else:
        for stage in stages:
            stage.parent.mkdir(parents=True, exist_ok=True)
        stages_from_onnx(graphs, cascade, len(ensemble.classes), stages)
        if are_models:
            path = stages[-1]
        else:
            whole_from_onnx(graphs, rule or ensemble.rule, len(ensemble.classes), path)
    for config in fused_configs(ensemble, max_batch_size, backend):
        if config.name == FUSED and not are_models:
            _avoid_long_batches(config, path)
        _write_model(repository, config, ensemble)
    if ensemble.audit_rate is not None:
        # The same key as the voter's: both ways draw the same images.
        share_audit_draw(repository / "voter" / "1", repository / LABELS / "1")
    return path


def add_chain_models(
    ensemble: Ensemble, folder: Path, former: Path, max_batch_size: int, artefacts: Mapping[str, Artefact], form: Form
) -> None:
    """Add everything except the graphs to `folder`, also `ensemble.json`; continue the audits of `former`.

    ONNX Runtime serves members without an artefact.
    """
    for member, has_novelty in zip(ensemble.members, ensemble.detecting, strict=True):
        artefact = artefacts.get(member.name)
        made = (artefact.execution,) if artefact else ()
        config = member_config(member, max_batch_size, *made, has_novelty=has_novelty, decoded=ensemble.image)
        if form == "fused" and config.platform != "tensorrt_plan":
            # `plurum serve` leaves it out. For a Triton that someone else starts, one instance takes the least memory.
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        _avoid_long_batches(config, folder / member.name / "1" / "model.onnx")
        _write_model(folder, config, ensemble)
    for config in chain_configs(ensemble, max_batch_size, form):
        _write_model(folder, config, ensemble)
    state_precisions(folder / "voter" / "1", {name: artefact.precision for name, artefact in artefacts.items()})
    if ensemble.audit_rate is not None:
        write_audit_draw(folder / "voter" / "1", ensemble.audit_rate, former / "voter" / "1")
    write_metadata(folder / "ensemble.json", ensemble)


def _avoid_long_batches(config: Any, graph: Path) -> None:
    """Let a CPU take one request at a time if the graph takes long.

    A batch then saves little, and its first request waits for its last one. Requests keep their queue and its limits.
    """
    if config.platform != "tensorrt_plan" and multiply_adds(graph) >= _LONG:
        config.dynamic_batching.preferred_batch_size.append(1)


def state_precisions(version: Path, precisions: Mapping[str, Precision]) -> None:
    """Write each member's precision beside a Python model, which states it in its metrics."""
    (version / "precisions.json").write_text(json.dumps(precisions) + "\n", encoding="utf-8")


def _write_model(repository: Path, config: Any, ensemble: Ensemble) -> None:
    """Write a model's config and its version folder, with the code and `ensemble.json` of a Python model."""
    # Triton needs the folder even if it is empty.
    version = repository / str(config.name) / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    if config.backend != "python":
        return
    write_metadata(version / "ensemble.json", ensemble)
    for source in _SOURCES[config.name]:
        with as_file(files("plurum").joinpath(*source)) as path:
            if path.is_dir():
                shutil.copytree(path, version / source[-1], ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(path, version / source[-1])
