"""Plan the trainings of a run, and find those that are unfinished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from plurum.errors import OutputError, SettingsError
from plurum.regular_files import read_regular
from plurum.run import Run
from plurum.settings.training import TrainSettings
from plurum.spec import Metadata, Sha256, Text, read_member
from plurum.training.learning.architectures import member_names

__all__ = [
    "Distillation",
    "RunSettings",
    "TrainingPlan",
    "check_takes_members",
    "is_finished",
    "plan_trainings",
    "planned_trainings",
    "unfinished_members",
]


class Distillation(Metadata):
    """Teacher of a run's only member, a student, which `plurum distill` trained.

    Attributes:
        run: Path of the run whose vote the student imitates, as given.
        ensemble: SHA-256 of that run's `ensemble.json`.
        temperature: Temperature of the loss.
        label_weight: Weight of the labels in the loss.
        unlabelled: Images without labels, as given; None without any.
    """

    run: Text
    ensemble: Sha256
    temperature: float
    label_weight: float = 0.0
    unlabelled: Text | None = None


class RunSettings(Metadata):
    """Data source and settings of a run, as `run.json` records them.

    Attributes:
        version: Version of the file format.
        data: Data source, as given to `plurum train`.
        settings: All training settings, defaults included.
        distillation: Teacher of the student; None in a run of `plurum train`.
    """

    version: Literal[1] = 1
    data: Text
    settings: TrainSettings
    distillation: Distillation | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of one training.

    Attributes:
        name: Name of the member; with snapshots, the prefix of their names.
        arch: Architecture name or source for `timm.create_model`.
        seed: Random seed of the training.
        members: Names of the members that the training yields.
        model: Name that the trainings of one model's folds share; without folds, that of the training.
        fold: Fold that validates, from 1; None without folds.
    """

    name: str
    arch: str
    seed: int
    members: tuple[str, ...]
    model: str
    fold: int | None = None


def plan_trainings(settings: TrainSettings) -> list[TrainingPlan]:
    """Return the trainings of these settings, in order."""
    archs = settings.trained_archs
    folds = (None,) if settings.folds is None else range(1, settings.folds + 1)
    plans = list[TrainingPlan]()
    for model, arch in zip(member_names(archs), archs, strict=True):
        for fold in folds:
            name = model if fold is None else f"{model}-fold-{fold}"
            cycles = tuple(f"{name}-snapshot-{cycle}" for cycle in range(1, settings.snapshots + 1))
            members = cycles if settings.snapshots > 1 else (name,)
            plans.append(TrainingPlan(name, arch, settings.seed + len(plans), members, model, fold))
    return plans


def is_finished(run: Run, training: TrainingPlan) -> bool:
    """Return True if all members of the training are in the run.

    Raises:
        OutputError: one of them was not trained here, but added.
    """
    files = [run.member_folder(name) / "member.json" for name in training.members]
    for file in files:
        if file.is_file() and read_member(file).epochs is None:
            raise OutputError(
                f"--arch: expected names that the run does not have, got {file.parent.name}, which plurum add has "
                f"added. Remove {file.parent}, and add it again under another --name."
            )
    return all(file.is_file() for file in files)


def planned_trainings(run: Run) -> list[TrainingPlan]:
    """Return the trainings that a run was started with; none if `run.json` is missing or invalid."""
    try:
        started = RunSettings.model_validate_json(read_regular(run.settings_file))
    except (OSError, ValidationError):
        return []
    return plan_trainings(started.settings)


def check_takes_members(run: Run, option: str) -> None:
    """Check that a member from elsewhere, which `option` states, can vote in the run.

    Raises:
        SettingsError: the run has folds, and its vote is fitted to predictions of members that lack an image.
    """
    if any(training.fold is not None for training in planned_trainings(run)):
        raise SettingsError(
            f"{option}: expected a run without folds, got {run.path}. Add the model to a run that was trained without "
            f"--folds."
        )


def unfinished_members(run: Run) -> tuple[str, ...]:
    """Return the names of the planned members that the run lacks; nothing if `run.json` is missing or invalid."""
    names = (name for training in planned_trainings(run) for name in training.members)
    return tuple(name for name in names if not (run.member_folder(name) / "member.json").is_file())
