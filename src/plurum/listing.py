"""What a repository holds, file by file: an export writes the list, and the next one and the doctor compare.

Graphs alone do not make an answer: Triton serves the highest version folder that it finds, the voter votes by the
contract beside it, and a chain asks what its config names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import RepositoryError
from plurum.files import sha256_of

__all__ = ["Differences", "check_exported", "differences_from", "is_listed", "listing_of", "plans_of"]

# The list itself; what TensorRT remembers of its builds; tune's evidence; what Triton's Python compiles.
_UNLISTED = re.compile(r"export\.json|timing\.cache|tuning\.(json|csv|png)|[^/]+/1/__pycache__(/[^/]+\.pyc)?")
_CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Differences:
    """What is otherwise than listed; paths relative to the repository, folders with a slash at their end.

    Attributes:
        missing: Listed, and not there.
        changed: Of another SHA-256.
        extra: There, and not listed.
    """

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.missing or self.changed or self.extra)

    def first(self) -> str | None:
        """Return one of them in words, or None where there is none."""
        for names, what in (
            (self.missing, "is missing"),
            (self.changed, "is not the file that was exported"),
            (self.extra, "was not exported"),
        ):
            if names:
                return f"{names[0]} {what}"
        return None


def is_listed(name: str) -> bool:
    """Whether an export answers for a file of this path in a repository."""
    return not _UNLISTED.fullmatch(name)


def listing_of(repository: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that an export answers for, by its path in the repository."""
    names = (path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file())
    return {name: sha256_of(repository / name) for name in names if is_listed(name)}


def plans_of(graphs: Iterable[str]) -> set[str]:
    """Return what is built beside these graphs on the GPU that serves them: plans, and what is known of each."""
    return {Path(graph).with_name(name).as_posix() for graph in graphs for name in ("model.plan", "model.plan.json")}


def check_exported(repository: Path, hashes: Mapping[str, str] | None = None) -> bool:
    """Make sure that the files of a repository are those that were exported, and return whether that can be known.

    Args:
        repository: The folder.
        hashes: SHA-256 of every file in it; None computes them.

    Returns:
        False where no `export.json` lists the files: nothing then vouches for them.

    Raises:
        RepositoryError: a file is missing, was changed or was not exported, or `export.json` can't be read.
    """
    found = listing_of(repository) if hashes is None else {name: one for name, one in hashes.items() if is_listed(name)}
    record = _record_of(repository)
    # The voter votes by the copy beside it, clients are told of the other. A list vouches for each by itself.
    contract = found.get("ensemble.json") if record.listing is None else None
    copies = [name for name in found if re.fullmatch(r"[^/]+/[0-9]+/ensemble\.json", name)]
    stated = record.hashes | ({} if contract is None else dict.fromkeys(copies, contract))
    changed = tuple(name for name, sha256 in stated.items() if found.get(name, sha256) != sha256)
    differences = Differences((), changed, ())
    if record.listing is not None and not changed:
        differences = differences_from(record.listing, repository, record.plans, found)
    if told := differences.first():
        raise RepositoryError(f"{told}; export it again with plurum export")
    return record.listing is not None


@dataclass(frozen=True)
class _Record:
    """What `export.json`, and the files beside plans, say: the list, hashes of graphs and plans, what may have come."""

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
        # Exports before files were listed have the hashes of graphs alone.
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
) -> Differences:
    """Compare `repository` with its list.

    Args:
        listing: As `listing_of` returned it.
        repository: The folder.
        later: What may have come since, such as plans.
        found: What `listing_of` returns now; None calls it.
    """
    found = listing_of(repository) if found is None else found
    # Triton wants a version folder even of models that have no file in it.
    versions = {name.removesuffix(_CONFIG) + "1/" for name in listing if re.fullmatch(rf"[^/]+/{_CONFIG}", name)}
    known = versions | {f"{parent.as_posix()}/" for name in listing for parent in Path(name).parents}
    strange = [name for name in found if name not in listing and name not in later]
    folders = (path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_dir())
    empty = [
        f"{name}/"
        for name in folders
        if f"{name}/" not in known
        and not _UNLISTED.fullmatch(name)
        and not any(one.startswith(f"{name}/") for one in strange)
    ]
    return Differences(
        missing=tuple(
            [name for name in listing if name not in found]
            + [name for name in sorted(versions) if not (repository / name).is_dir()]
        ),
        changed=tuple(name for name, sha256 in listing.items() if found.get(name, sha256) != sha256),
        extra=(*strange, *empty),
    )
