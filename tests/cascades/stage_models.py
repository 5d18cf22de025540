"""Serve a repository for GPUs on the CPU: ONNX Runtime runs the graphs of the plans that it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plurum.export.manifest import MANIFEST, read_manifest
from plurum.export.repository.configs import text_of
from plurum.export.repository.model_folders import add_chain_models, add_fused_models
from plurum.repository.listing import listing_of, model_folders
from plurum.serving.triton.staging import read_config
from plurum.spec import Ensemble, write_metadata

__all__ = ["run_on_cpu", "write_stage_models"]


def write_stage_models(ensemble: Ensemble, graphs: Mapping[str, Path], folder: Path) -> Path:
    """Write a repository with a model per stage to `folder`, as export does for GPUs, and let it run on the CPU."""
    for name, graph in graphs.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(graph.read_bytes())
    add_chain_models(ensemble, folder, folder, 8, {}, "fused")
    add_fused_models(ensemble, [graphs[member.name] for member in ensemble.members], folder, 8, "tensorrt")
    return run_on_cpu(folder)


def run_on_cpu(repository: Path) -> Path:
    """Let ONNX Runtime serve all plans of a repository, and return it; nothing else of it changes."""
    for model in model_folders(repository):
        config = read_config(model)
        if config.platform == "tensorrt_plan":
            for field in ("platform", "optimization", "instance_group"):
                config.ClearField(field)
            config.backend, config.default_model_filename = "onnxruntime", "model.onnx"
            (model / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    if (repository / MANIFEST).is_file():
        manifest = read_manifest(repository)
        graphs = tuple(one.model_copy(update={"backend": "onnxruntime"}) for one in manifest.artefacts)
        changed = {"artefacts": graphs, "files": listing_of(repository)}
        write_metadata(repository / MANIFEST, manifest.model_copy(update=changed))
    return repository
