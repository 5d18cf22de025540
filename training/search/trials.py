"""Trials of a search, and the command that trains the best."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plurum.settings.options import option_from_field
from plurum.settings.search import AUGMENTATIONS
from plurum.settings.training import TrainSettings

__all__ = ["SearchResult", "SearchTrial", "Study", "command_from_settings", "trials_from_study"]

# An `optuna.Study`; Optuna is imported only by a search.
Study = Any


@dataclass(frozen=True)
class SearchTrial:
    """Finished trial of a search.

    Attributes:
        number: Number of the trial among the finished ones, from 1.
        state: `complete`, or `pruned` before its last epoch.
        arch: Architecture name or source.
        augmentation: Name of the augmentation.
        learning_rate: Learning rate after warm-up.
        weight_decay: Weight decay.
        nll: Lowest validation NLL, in nats; None if no epoch ended.
        accuracy: Validation accuracy of that epoch, 0 to 1; None if pruned.
        epochs: Validation NLL by epoch, from 1.
        seconds: Duration in seconds.
        note: Reason why the training failed; empty otherwise.
    """

    number: int
    state: Literal["complete", "pruned"]
    arch: str
    augmentation: str
    learning_rate: float
    weight_decay: float
    nll: float | None
    accuracy: float | None
    epochs: Mapping[int, float]
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        source: Data source.
        training: Training settings that all trials share.
        trials: Finished trials, in order.
    """

    source: str
    training: TrainSettings
    trials: tuple[SearchTrial, ...]

    @property
    def best(self) -> SearchTrial | None:
        """Complete trial with the lowest validation NLL, the first of equals; None if no trial is complete."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.nll is not None]
        return min(complete, key=lambda trial: trial.nll or 0.0, default=None)

    @property
    def command(self) -> str:
        """Command that trains the best trial's member again; empty if no trial is complete."""
        best = self.best
        if best is None:
            return ""
        changes: dict[str, Any] = {
            "archs": (best.arch,),
            "learning_rate": best.learning_rate,
            "weight_decay": best.weight_decay,
        }
        settings = self.training.model_copy(update=changes | AUGMENTATIONS[best.augmentation])
        return command_from_settings(self.source, settings)


def command_from_settings(source: str, settings: TrainSettings) -> str:
    """Return the `plurum train` command for these settings, without `--out`."""
    words = ["plurum", "train", source]
    for name, field in TrainSettings.model_fields.items():
        value, option = getattr(settings, name), option_from_field(TrainSettings, name)
        if value == field.default:
            continue
        if name == "archs":
            words += [word for arch in value for word in (option, arch)]
        elif isinstance(value, bool):
            words.append(option)
        elif isinstance(value, tuple):
            words += [option, ",".join(map(str, value))]
        else:
            words += [option, str(value)]
    return shlex.join(words)


def trials_from_study(study: Study) -> list[SearchTrial]:
    """Return the finished trials of an Optuna study, in order; those that were interrupted are left out."""
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in {"COMPLETE", "PRUNED"}]
    return [_trial(number, trial) for number, trial in enumerate(finished, 1)]


def _trial(number: int, trial: Any) -> SearchTrial:
    epochs = dict(sorted(trial.intermediate_values.items()))
    return SearchTrial(
        number=number,
        state="complete" if trial.state.name == "COMPLETE" else "pruned",
        arch=trial.params["arch"],
        augmentation=trial.params["augmentation"],
        learning_rate=trial.params["learning_rate"],
        weight_decay=trial.params["weight_decay"],
        nll=min(epochs.values(), default=None),
        accuracy=trial.user_attrs.get("accuracy"),
        epochs=epochs,
        seconds=(trial.datetime_complete - trial.datetime_start).total_seconds(),
        note=trial.user_attrs.get("note", ""),
    )
