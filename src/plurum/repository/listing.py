"""Listing of a repository's files: written by an export, and checked by the next export, the doctor and the server.

All files matter, not only graphs. Triton serves the highest version folder, the voter reads the ensemble.json beside
it, and an ensemble runs the models that its config names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import RepositoryError
from plurum.files import sha256_of

__all__ = [
    "ListingDifferences",
    "check_exported",
    "differences_from",
    "is_listed",
    "listing_of",
    "model_folders",
    "plans_of",
]

# The listing itself, TensorRT's timing cache, results of `plurum tune`, and bytecode of Triton's Python.
_UNLISTED = re.compile(r"export\.json|timing\.cache|tuning\.(json|csv|png)|[^/]+/1/([^/]+/)?__pycache__(/[^/]+\.pyc)?")
_CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class ListingDifferences:
    """Differences between a repository and its listing, as relative paths; folders end with a slash.

    Attributes:
        missing: Listed paths that do not exist.
        changed: Files whose SHA-256 differs.
        extra: Paths that are not listed.
    """

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        """Return True if there is any difference."""
        return bool(self.missing or self.changed or self.extra)

    def first(self) -> str | None:
        """Return a description of one difference, or None if there is none."""
        for names, what in (
            (self.missing, "is missing"),
            (self.changed, "is not the file that was exported"),
            (self.extra, "was not exported"),
        ):
            if names:
                return f"{names[0]} {what}"
        return None


def model_folders(repository: Path) -> list[Path]:
    """Return the model folders of `repository`, sorted by name.

    Raises:
        RepositoryError: the repository is not a folder, or holds no model.
    """
    if not repository.is_dir():
        what = "a file" if repository.exists() else "nothing: the path does not exist"
        raise RepositoryError(
            f"{repository}: expected a model repository folder, got {what}. Create one with: plurum export RUN"
        )
    # Hidden folders are still being written, or are set aside.
    folders = sorted(
        path for path in repository.iterdir() if (path / _CONFIG).is_file() and not path.name.startswith(".")
    )
    if not folders:
        raise RepositoryError(
            f"{repository} is not a model repository: no folder in it has a {_CONFIG}. "
            "Create one with: plurum export RUN"
        )
    return folders


def is_listed(name: str) -> bool:
    """Return True if an export lists files of this relative path."""
    return not _UNLISTED.fullmatch(name)


def listing_of(repository: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that an export lists, by relative path."""
    names = (path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file())
    return {name: sha256_of(repository / name) for name in names if is_listed(name)}


def plans_of(graphs: Iterable[str]) -> set[str]:
    """Return the paths of the TensorRT plans of these graphs and of the plans' metadata."""
    return {Path(graph).with_name(name).as_posix() for graph in graphs for name in ("model.plan", "model.plan.json")}


def check_exported(repository: Path, hashes: Mapping[str, str] | None = None) -> bool:
    """Check that the files of a repository are those that were exported.

    Args:
        repository: Folder of the repository.
        hashes: SHA-256 of every file in it; None computes them.

    Returns:
        True if `export.json` lists the files, so that the check is complete.

    Raises:
        RepositoryError: a file is missing, changed or not exported, or `export.json` can't be read.
    """
    found = listing_of(repository) if hashes is None else {name: one for name, one in hashes.items() if is_listed(name)}
    record = _record_of(repository)
    # The voter reads the copy beside it, clients the one at the top; without a listing, compare the two.
    ensemble_sha256 = found.get("ensemble.json") if record.listing is None else None
    copies = [name for name in found if re.fullmatch(r"[^/]+/[0-9]+/ensemble\.json", name)]
    stated = record.hashes | ({} if ensemble_sha256 is None else dict.fromkeys(copies, ensemble_sha256))
    changed = tuple(name for name, sha256 in stated.items() if found.get(name, sha256) != sha256)
    differences = ListingDifferences((), changed, ())
    if record.listing is not None and not changed:
        differences = differences_from(record.listing, repository, record.plans, found)
    if difference := differences.first():
        raise RepositoryError(f"{difference}; export it again with plurum export")
    return record.listing is not None


@dataclass(frozen=True)
class _Record:
    """Content of `export.json` and of the plans' metadata.

    Attributes:
        listing: SHA-256 by relative path; None in exports without a listing.
        hashes: SHA-256 of graphs and plans by relative path.
        plans: Relative paths of plans and their metadata, which may have been built since.
    """

    listing: dict[str, str] | None
    hashes: dict[str, str]
    plans: set[str]


def _record_of(repository: Path) -> _Record:
    path = repository / "export.json"
    try:
        manifest = json.loads(path.read_bytes())
        listing = manifest.get("files")
        if listing is not None and not all(isinstance(one, str) for one in dict(listing).values()):
            raise ValueError("files has other values than SHA-256")
        # Exports from before listings record only the hashes of graphs.
        hashes = {one["file"]: one["sha256"] for one in manifest["artefacts"]} if listing is None else {}
        plans = plans_of(one["file"] for one in manifest["artefacts"] if one["backend"] == "tensorrt")
        for name in plans:
            path = repository / name
            if path.suffix == ".json" and path.is_file():
                hashes[name.removesuffix(".json")] = json.loads(path.read_bytes())["plan_sha256"]
        return _Record(None if listing is None else dict(listing), hashes, plans)
    except FileNotFoundError:
        return _Record(None, {}, set())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{path} can't be read ({error!r}); export it again with plurum export") from error


def differences_from(
    listing: Mapping[str, str], repository: Path, later: Collection[str] = (), found: Mapping[str, str] | None = None
) -> ListingDifferences:
    """Return the differences between `repository` and its listing.

    Args:
        listing: Result of `listing_of` at the export.
        repository: Folder of the repository.
        later: Relative paths that may have been added since, such as plans.
        found: Current result of `listing_of`; None computes it.
    """
    found = listing_of(repository) if found is None else found
    # Triton needs a version folder even for models without files in it.
    versions = {name.removesuffix(_CONFIG) + "1/" for name in listing if re.fullmatch(rf"[^/]+/{_CONFIG}", name)}
    known = versions | {f"{parent.as_posix()}/" for name in listing for parent in Path(name).parents}
    unlisted = [name for name in found if name not in listing and name not in later]
    folders = (path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_dir())
    empty = [
        f"{name}/"
        for name in folders
        if f"{name}/" not in known
        and not _UNLISTED.fullmatch(name)
        and not any(one.startswith(f"{name}/") for one in unlisted)
    ]
    return ListingDifferences(
        missing=tuple(
            [name for name in listing if name not in found]
            + [name for name in sorted(versions) if not (repository / name).is_dir()]
        ),
        changed=tuple(name for name, sha256 in listing.items() if found.get(name, sha256) != sha256),
        extra=(*unlisted, *empty),
    )
