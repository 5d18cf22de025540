"""Do a repository's parts agree: files with their list, configs with the contract, steps with models?

Each check returns its faults in words; an empty list is well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.manifest import Manifest
from plurum.export.repository.configs import (
    FUSED,
    LABELS,
    ensemble_config,
    fused_config,
    fused_ensemble_config,
    labels_config,
    member_config,
    preprocess_config,
    voter_config,
)
from plurum.listing import Differences
from plurum.spec import Ensemble

__all__ = ["contract_faults", "copy_faults", "expected_configs", "file_faults", "stated_faults", "wiring_faults"]


def expected_configs(ensemble: Ensemble, manifest: Manifest) -> dict[str, Any]:
    """Return what the contract wants of every model, by name: inputs, outputs and the largest batch."""
    most = manifest.max_batch_size
    configs = [
        *(member_config(member, most) for member in ensemble.members),
        preprocess_config(ensemble, most),
        voter_config(ensemble, most),
        ensemble_config("ensemble", ensemble, most, encoded=True),
        ensemble_config("ensemble_pixels", ensemble, most, encoded=False),
    ]
    if any(one.model == FUSED for one in manifest.artefacts):
        configs += [fused_config(ensemble, most, "onnxruntime"), labels_config(ensemble, most)]
        configs.append(fused_ensemble_config(ensemble, most))
    return {str(config.name): config for config in configs}


def stated_faults(config: Any, expected: Any) -> list[str]:
    """Are the inputs and outputs that a config states, and the largest batch, those of the contract?"""
    faults = []
    if config.name not in {"", expected.name}:
        faults.append(f"config.pbtxt is of {config.name}")
    if config.max_batch_size != expected.max_batch_size:
        faults.append(f"config.pbtxt takes batches of {config.max_batch_size}, not of {expected.max_batch_size}")
    for kind in ("input", "output"):
        stated, wanted = _tensors(getattr(config, kind)), _tensors(getattr(expected, kind))
        faults += [f"config.pbtxt states no {kind} {name}" for name in wanted if name not in stated]
        faults += [f"config.pbtxt states the {kind} {name}, which is not one" for name in stated if name not in wanted]
        faults += [
            f"{kind} {name} is {stated[name]} in config.pbtxt and {tensor} by the contract"
            for name, tensor in wanted.items()
            if stated.get(name, tensor) != tensor
        ]
    return faults


def contract_faults(config: Any, ensemble: Ensemble) -> list[str]:
    """Does a chain tell clients the contract that the repository has?"""
    told = config.parameters["contract"].string_value if "contract" in config.parameters else ""
    try:
        same = Ensemble.model_validate_json(told) == ensemble
    except ValidationError:
        return ["the parameter contract in config.pbtxt is no contract; clients read it"]
    return [] if same else ["the parameter contract in config.pbtxt is another contract than ensemble.json"]


def copy_faults(copy: Path, repository: Path) -> list[str]:
    """Is the contract beside a Python model the repository's?"""
    if copy.read_bytes() == (repository / "ensemble.json").read_bytes():
        return []
    return [f"{copy.relative_to(repository)} is another contract than the repository's"]


def file_faults(differences: Differences, manifest: Manifest) -> list[str]:
    """Is every listed file there, as it was exported? Graphs are left to the check of their own."""
    graphs = {one.file for one in manifest.artefacts}
    return [
        *(f"{name} is missing" for name in differences.missing if name not in graphs),
        *(f"{name} was changed since it was exported" for name in differences.changed if name not in graphs),
    ]


def wiring_faults(config: Any, members: list[str], configs: dict[str, Any]) -> list[str]:
    """Does every member reach the voter once, in the contract's order, and do all steps lead to models?"""
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    faults = [f"a step asks {name}, which is not in the repository" for name in steps if name not in configs]
    if "voter" not in steps:
        if set(steps) - {"preprocess"} != {FUSED, LABELS}:
            faults.append("no step asks the voter, nor the fused graph and its labels")
        return faults
    makers = {
        tensor: step.model_name for step in config.ensemble_scheduling.step for tensor in step.output_map.values()
    }
    wired = [makers.get(steps["voter"].input_map.get(f"LOGITS_{index}", "")) for index in range(len(members))]
    faults += [f"member {name} does not reach the voter" for name in members if name not in wired]
    if not faults and wired != members:
        faults.append(f"the voter hears {', '.join(map(str, wired))}; the contract's order is {', '.join(members)}")
    return faults


def _tensors(stated: Any) -> dict[str, str]:
    return {one.name: f"{pb.DataType.Name(one.data_type)} {list(one.dims)}" for one in stated}
