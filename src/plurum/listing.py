"""What a repository holds, file by file: an export writes the list, and the next one and the doctor compare.

Graphs alone do not make an answer: Triton serves the highest version folder that it finds, the voter votes by the
contract beside it, and a chain asks what its config names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plurum.files import sha256_of

__all__ = ["Differences", "differences_from", "listing_of", "plans_of"]

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


def listing_of(repository: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that an export answers for, by its path in the repository."""
    names = (path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file())
    return {name: sha256_of(repository / name) for name in names if not _UNLISTED.fullmatch(name)}


def plans_of(graphs: Iterable[str]) -> set[str]:
    """Return what is built beside these graphs on the GPU that serves them: plans, and what is known of each."""
    return {Path(graph).with_name(name).as_posix() for graph in graphs for name in ("model.plan", "model.plan.json")}


def differences_from(listing: Mapping[str, str], repository: Path, later: Collection[str] = ()) -> Differences:
    """Compare `repository` with its list.

    Args:
        listing: As `listing_of` returned it.
        repository: The folder.
        later: What may have come since, such as plans.
    """
    found = listing_of(repository)
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
