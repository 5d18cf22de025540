"""Which trainings a run is to have, and which of them are not over yet."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from plurum.regular_files import read_regular
from plurum.run import Run
from plurum.training.learning.architectures import member_names
from plurum.training.settings import Begun, TrainSettings

__all__ = ["Wanted", "is_finished", "trainings_of", "unfinished_members"]


@dataclass(frozen=True)
class Wanted:
    """A training to be.

    Attributes:
        name: Of its member; with snapshots, what their names begin with.
        arch: What `timm.create_model` takes.
        seed: What it draws from.
        members: The names of what comes out of it.
    """

    name: str
    arch: str
    seed: int
    members: tuple[str, ...]


def trainings_of(settings: TrainSettings) -> list[Wanted]:
    """Return the trainings that the settings ask for, in their order."""
    archs = settings.trained_archs
    wanted = []
    for number, (name, arch) in enumerate(zip(member_names(archs), archs, strict=True)):
        members = tuple(f"{name}-snapshot-{cycle}" for cycle in range(1, settings.snapshots + 1))
        wanted.append(Wanted(name, arch, settings.seed + number, members if settings.snapshots > 1 else (name,)))
    return wanted


def is_finished(run: Run, training: Wanted) -> bool:
    """Whether all that comes out of the training is in the run."""
    return all((run.member_folder(name) / "member.json").is_file() for name in training.members)


def unfinished_members(run: Run) -> tuple[str, ...]:
    """Return the names of the members that the run was begun with and has not; none where that can't be told."""
    try:
        begun = Begun.model_validate_json(read_regular(run.settings_file))
    except (OSError, ValidationError):
        return ()
    names = (name for training in trainings_of(begun.settings) for name in training.members)
    return tuple(name for name in names if not (run.member_folder(name) / "member.json").is_file())
