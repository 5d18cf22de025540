"""Manifest of an exported repository, REPO/export.json: its inputs and its files.

With it, a repeated export finds that nothing has to be done, and `plurum doctor` finds changed, missing and extra
files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from plurum import __version__
from plurum.errors import RepositoryError
from plurum.export.settings import Backend, ExportSettings, Precision, Target
from plurum.repository.listing import differences_from, listing_of, plans_of
from plurum.repository.probes import PROBES_FILE
from plurum.spec import Ensemble, Metadata, Sha256, read_ensemble, read_metadata, write_metadata

__all__ = [
    "MANIFEST",
    "ExportManifest",
    "PublishedGraph",
    "hash_inputs",
    "is_current",
    "is_exported_from",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "export.json"
# Increase it when the same inputs give other graphs, or other code beside them.
_RECIPE = "10"
# Packages whose version affects the graphs.
_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "nvidia-modelopt")


class PublishedGraph(Metadata):
    """A graph in the repository that a server loads.

    Attributes:
        model: Name of the Triton model.
        file: Path relative to the repository.
        sha256: SHA-256 of the file.
        size_bytes: Size of the file in bytes.
        precision: Precision of most of the graph.
        backend: Backend that serves the graph.
        reason: Reason for this precision, in words.
        latency_ms: Latency of one image on one thread of the exporting machine, by precision and backend; empty if
            not measured.
    """

    model: str
    file: str
    sha256: Sha256
    size_bytes: int
    precision: Precision
    backend: Backend
    reason: str
    latency_ms: dict[str, float]


class ExportManifest(Metadata):
    """Contents of `export.json`: what was exported, from which inputs, with which versions.

    Attributes:
        version: Version of the file format.
        inputs: SHA-256 over `ensemble.json`, the settings and the versions; equal inputs give equal repositories.
        target: Hardware that will serve.
        max_batch_size: Largest batch of every model.
        versions: Versions of the packages that made the repository.
        artefacts: Every graph in the repository.
        files: SHA-256 of every file except `export.json`, by path in the repository; None in older exports, which
            list no files.
        ensemble: SHA-256 of the exported ensemble, if the repository's states another promise or review limit because
            it was certified, or the outlier reference of its own graphs; None, and absent in files, if it is the same.
    """

    version: int = 1
    inputs: Sha256
    target: Target
    max_batch_size: int
    versions: dict[str, str]
    artefacts: tuple[PublishedGraph, ...]
    files: dict[str, Sha256] | None = None
    ensemble: Sha256 | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the newer key if it is None, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if name != "ensemble" or value is not None}

    @property
    def plans(self) -> set[str]:
        """Files that `--build-engines` adds, relative to the repository."""
        return plans_of(one.file for one in self.artefacts if one.backend == "tensorrt")


def hash_inputs(ensemble: Ensemble, settings: ExportSettings) -> str:
    """Return the SHA-256 over all inputs of an export; `ensemble` holds the SHA-256 of every checkpoint."""
    parts = [_RECIPE, ensemble.model_dump_json(), settings.model_dump_json(), *sorted(map(str, _versions().items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect the graphs."""
    found = {"plurum": __version__}
    for name in _TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_manifest(repository: Path) -> ExportManifest:
    """Return the manifest of `repository`.

    Raises:
        RepositoryError: the manifest is missing or invalid.
    """
    fix = "; export the run again"
    return read_metadata(repository / MANIFEST, ExportManifest, "an export manifest", RepositoryError, fix)


def write_manifest(
    repository: Path, ensemble: Ensemble, settings: ExportSettings, artefacts: tuple[PublishedGraph, ...]
) -> None:
    """Write the manifest of `repository`, after all its other files.

    Args:
        repository: Repository, whose `ensemble.json` may state what was certified.
        ensemble: Ensemble that was exported.
        settings: Settings of the export.
        artefacts: Every graph in the repository.
    """
    is_same = read_ensemble(repository / "ensemble.json") == ensemble
    manifest = ExportManifest(
        inputs=hash_inputs(ensemble, settings),
        target=settings.target,
        max_batch_size=settings.max_batch_size,
        versions=_versions(),
        artefacts=artefacts,
        files=listing_of(repository),
        ensemble=None if is_same else _hash_ensemble(ensemble),
    )
    write_metadata(repository / MANIFEST, manifest)


def is_exported_from(repository: Path, ensemble: Ensemble) -> bool:
    """Return True if `repository` serves `ensemble`, or what its export certified of it.

    Raises:
        MetadataError: its `ensemble.json` is missing or invalid.
    """
    if read_ensemble(repository / "ensemble.json") == ensemble:
        return True
    try:
        return read_manifest(repository).ensemble == _hash_ensemble(ensemble)
    except RepositoryError:
        return False


def _hash_ensemble(ensemble: Ensemble) -> str:
    return hashlib.sha256(ensemble.model_dump_json().encode()).hexdigest()


def is_current(repository: Path, ensemble: Ensemble, settings: ExportSettings) -> bool:
    """Return True if `repository` was exported from these inputs and its files are unchanged and complete."""
    try:
        manifest = read_manifest(repository)
    except RepositoryError:
        return False
    if manifest.inputs != hash_inputs(ensemble, settings) or PROBES_FILE not in (manifest.files or ()):
        return False
    return not differences_from(manifest.files or {}, repository, manifest.plans)
