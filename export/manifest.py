"""What a repository was made of, beside it: REPO/export.json.

By it a second export knows that there is nothing to do, and `plurum doctor` that nothing was changed, lost or added
since.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from pydantic import ValidationError

from plurum import __version__
from plurum.errors import RepositoryError
from plurum.export.settings import Backend, ExportSettings, Precision, Target
from plurum.listing import differences_from, listing_of, plans_of
from plurum.probes import PROBES_FILE
from plurum.regular_files import read_regular
from plurum.spec import Contract, Ensemble, Sha256, write_contract

__all__ = ["MANIFEST", "Manifest", "Published", "inputs_of", "is_current", "read_manifest", "write_manifest"]

MANIFEST = "export.json"
# Another number where the same inputs make other graphs, or other code beside them, than before.
_RECIPE = "4"
# What has a say in what a graph is made like.
_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "nvidia-modelopt")


class Published(Contract):
    """One file that a server loads.

    Attributes:
        model: Its Triton model.
        file: Relative to the repository.
        sha256: Of the file.
        size_bytes: Of the file.
        precision: What most of it computes in.
        backend: What serves it.
        reason: Why this precision, in words.
        latency_ms: By precision and backend, one image on one thread of the machine that exported; empty where not
            measured.
    """

    model: str
    file: str
    sha256: Sha256
    size_bytes: int
    precision: Precision
    backend: Backend
    reason: str
    latency_ms: dict[str, float]


class Manifest(Contract):
    """What was exported, from what, by what.

    Attributes:
        inputs: SHA-256 over the contract, the settings and the versions: equal inputs make equal repositories.
        target: What will serve.
        max_batch_size: Largest batch of every model.
        versions: Of the packages that made it.
        artefacts: Every graph.
        files: SHA-256 of every file but this one, by its path in the repository; None where it was exported before
            files were listed.
    """

    version: int = 1
    inputs: Sha256
    target: Target
    max_batch_size: int
    versions: dict[str, str]
    artefacts: tuple[Published, ...]
    files: dict[str, Sha256] | None = None

    @property
    def plans(self) -> set[str]:
        """What `--build-engines` adds, relative to the repository."""
        return plans_of(one.file for one in self.artefacts if one.backend == "tensorrt")


def inputs_of(ensemble: Ensemble, settings: ExportSettings) -> str:
    """Return the SHA-256 over all that an export depends on; the contract names every checkpoint's own."""
    parts = [_RECIPE, ensemble.model_dump_json(), settings.model_dump_json(), *sorted(map(str, _versions().items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """Return the versions of the packages that make graphs, those that are installed."""
    found = {"plurum": __version__}
    for name in _TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_manifest(repository: Path) -> Manifest:
    """Return the manifest of `repository`.

    Raises:
        RepositoryError: it has none, or a broken one.
    """
    path = repository / MANIFEST
    try:
        return Manifest.model_validate_json(read_regular(path))
    except OSError as error:
        raise RepositoryError(f"{path} can't be read: {error.strerror}; export the run again") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]["msg"]
        raise RepositoryError(f"{path} is no export manifest of version 1: {fault}; export the run again") from error


def write_manifest(
    repository: Path, ensemble: Ensemble, settings: ExportSettings, artefacts: tuple[Published, ...]
) -> None:
    """Write the manifest into `repository`, which holds everything else already."""
    manifest = Manifest(
        inputs=inputs_of(ensemble, settings),
        target=settings.target,
        max_batch_size=settings.max_batch_size,
        versions=_versions(),
        artefacts=artefacts,
        files=listing_of(repository),
    )
    write_contract(repository / MANIFEST, manifest)


def is_current(repository: Path, ensemble: Ensemble, settings: ExportSettings) -> bool:
    """Whether `repository` was made of exactly this, and holds what was made, unchanged, and nothing else."""
    try:
        manifest = read_manifest(repository)
    except RepositoryError:
        return False
    if manifest.inputs != inputs_of(ensemble, settings) or PROBES_FILE not in (manifest.files or ()):
        return False
    return not differences_from(manifest.files or {}, repository, manifest.plans)
