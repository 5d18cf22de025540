"""Check that a repository's parts agree: files with the manifest, configs with `ensemble.json`, steps with models.

Each check returns its faults in words; an empty list means that it passed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.manifest import ExportManifest
from plurum.export.repository.configs import FUSED, LABELS, chain_configs, fused_configs, member_config, stage_models
from plurum.export.settings import Backend
from plurum.repository.listing import ListingDifferences
from plurum.spec import LOGITS, NOVELTY, Ensemble

__all__ = [
    "config_faults",
    "copy_faults",
    "expected_configs",
    "file_faults",
    "fused_backend",
    "parameter_faults",
    "stage_faults",
    "wiring_faults",
]


def stage_faults(config: Any, expected: Any) -> list[str]:
    """Check that the config of the fused graph names the graphs of the cascade's stages."""
    stated, needed = (
        one.parameters["stages"].string_value if "stages" in one.parameters else "" for one in (config, expected)
    )
    return [] if stated == needed else [f"stages: expected {needed or 'none'} in config.pbtxt, got {stated or 'none'}"]


def expected_configs(ensemble: Ensemble, manifest: ExportManifest) -> dict[str, Any]:
    """Return the config of every model that `ensemble` needs, by name: inputs, outputs and the largest batch."""
    most = manifest.max_batch_size
    members = zip(ensemble.members, ensemble.detecting, strict=True)
    configs = [
        member_config(member, most, has_novelty=has_novelty, decoded=ensemble.image) for member, has_novelty in members
    ]
    has_fused_graph = not {FUSED, *stage_models(ensemble)}.isdisjoint(one.model for one in manifest.artefacts)
    # Inputs and outputs are the same in both forms.
    configs += chain_configs(ensemble, most, "fused" if has_fused_graph else "chain")
    if has_fused_graph:
        configs += fused_configs(ensemble, most, fused_backend(manifest))
    return {str(config.name): config for config in configs}


def fused_backend(manifest: ExportManifest) -> Backend:
    """Return a backend that has the form of the repository's fused graph."""
    return "tensorrt" if manifest.target == "gpu" else "onnxruntime"


def config_faults(config: Any, expected: Any) -> list[str]:
    """Check that the name, inputs, outputs and largest batch in a config are the expected ones."""
    faults = []
    if config.name not in {"", expected.name}:
        faults.append(f"name: expected {expected.name} in config.pbtxt, got {config.name}")
    if config.max_batch_size != expected.max_batch_size:
        faults.append(
            f"max_batch_size: expected {expected.max_batch_size} in config.pbtxt, got {config.max_batch_size}"
        )
    for kind in ("input", "output"):
        stated, needed = _tensors(getattr(config, kind)), _tensors(getattr(expected, kind))
        faults += [f"config.pbtxt lacks the {kind} {name}" for name in needed if name not in stated]
        faults += [f"config.pbtxt has an unknown {kind} {name}" for name in stated if name not in needed]
        faults += [
            f"{kind} {name} is {stated[name]} in config.pbtxt and {tensor} by ensemble.json"
            for name, tensor in needed.items()
            if stated.get(name, tensor) != tensor
        ]
    return faults


def parameter_faults(config: Any, ensemble: Ensemble) -> list[str]:
    """Check that the parameter `contract`, which clients read, equals `ensemble.json`."""
    text = config.parameters["contract"].string_value if "contract" in config.parameters else ""
    try:
        same = Ensemble.model_validate_json(text) == ensemble
    except ValidationError:
        return ["the parameter contract in config.pbtxt, which clients read, is not the text of an ensemble.json"]
    return [] if same else ["the parameter contract in config.pbtxt differs from ensemble.json"]


def copy_faults(copy: Path, repository: Path) -> list[str]:
    """Check that the `ensemble.json` beside a Python model equals the repository's."""
    if copy.read_bytes() == (repository / "ensemble.json").read_bytes():
        return []
    return [f"{copy.relative_to(repository)} differs from the repository's ensemble.json"]


def file_faults(differences: ListingDifferences, manifest: ExportManifest) -> list[str]:
    """Check that every listed file is present and unchanged; graphs have a check of their own."""
    graphs = {one.file for one in manifest.artefacts}
    return [
        *(f"{name} is missing" for name in differences.missing if name not in graphs),
        *(f"{name} was changed since it was exported" for name in differences.changed if name not in graphs),
    ]


def wiring_faults(config: Any, members: list[str], configs: dict[str, Any]) -> list[str]:
    """Check that all steps name models, and that every member reaches the voter once, in the order of the ensemble."""
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    faults = [f"a step calls {name}, which is not in the repository" for name in steps if name not in configs]
    if "voter" not in steps:
        if set(steps) - {"preprocess"} != {FUSED, LABELS}:
            faults.append("no step calls the voter, or the fused graph and its labels")
        return faults
    makers = {
        tensor: step.model_name for step in config.ensemble_scheduling.step for tensor in step.output_map.values()
    }
    wired = [makers.get(steps["voter"].input_map.get(f"{LOGITS}_{index}", "")) for index in range(len(members))]
    faults += [f"member {name} does not reach the voter" for name in members if name not in wired]
    if not faults and wired != members:
        order = ", ".join(map(str, wired))
        faults.append(f"the voter gets {order}; the order in ensemble.json is {', '.join(members)}")
    for index, name in enumerate(members):
        novelty = steps["voter"].input_map.get(f"{NOVELTY}_{index}")
        if novelty and makers.get(novelty) != name:
            faults.append(f"the voter gets the novelty of {makers.get(novelty)} as that of {name}")
    return faults


def _tensors(stated: Any) -> dict[str, str]:
    return {one.name: f"{pb.DataType.Name(one.data_type)} {list(one.dims)}" for one in stated}
