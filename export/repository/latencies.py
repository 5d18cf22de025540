"""Latency of each member of a repository, by which a cascade may order them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from plurum.errors import SettingsError
from plurum.export.graphs.runtimes import Artefact, latency_ms
from plurum.export.manifest import read_manifest
from plurum.export.settings import Execution
from plurum.spec import read_ensemble

__all__ = ["member_latencies"]


def member_latencies(repository: Path, progress: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Return each member's latency for one image on one thread, ms, in the precision that is served.

    They are those that `export.json` states, as `--precision auto` measures them; if one is missing, all are measured
    on this machine.

    Args:
        repository: Repository of `plurum export` for CPUs.
        progress: Called with one line per member that is measured.

    Raises:
        MetadataError: its `ensemble.json` is missing or invalid.
        MissingExtraError: OpenVINO is needed and not installed.
        RepositoryError: it is not a repository of `plurum export`.
        SettingsError: it is for GPUs.
    """
    manifest, ensemble = read_manifest(repository), read_ensemble(repository / "ensemble.json")
    if manifest.target == "gpu":
        raise SettingsError(
            f"--cascade-costs: expected a repository for CPUs, got one for GPUs: {repository}. Give one that "
            "plurum export --target cpu writes."
        )
    detecting = {member.name: has for member, has in zip(ensemble.members, ensemble.detecting, strict=True)}
    graphs = {one.model: one for one in manifest.artefacts if one.model in detecting}
    stated = {name: one.latency_ms.get(str(Execution(one.precision, one.backend))) for name, one in graphs.items()}
    known = {name: time_ms for name, time_ms in stated.items() if time_ms is not None}
    if len(known) == len(graphs):
        return known
    pixels = np.zeros((1, ensemble.image.height, ensemble.image.width, 3), np.uint8)
    found = {}
    for name, one in graphs.items():
        progress(f"{name}: latency of one image")
        artefact = Artefact(name, one.precision, one.backend, repository / one.file, detecting[name])
        found[name] = latency_ms(artefact, pixels)
    return found
