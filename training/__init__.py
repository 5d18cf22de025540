"""Images → members: data sets, splits by patient, trainer and checkpoints; and members → an ensemble that is fitted.

The trainer itself, which imports PyTorch, is `plurum.training.trainer`. So does `plurum.training.ensembles`, which is
imported when one of its names is first asked for.
"""

from __future__ import annotations

import typing

from plurum.training.data import LabelledImages
from plurum.training.evaluation import judge_run
from plurum.training.findings import FitReport, write_fit
from plurum.training.fit import fit_report, fit_run
from plurum.training.judge import JudgeSettings
from plurum.training.judgement import Judgement
from plurum.training.members import Training, TrainOptions, train_run
from plurum.training.report import write_report
from plurum.training.settings import FitSettings, TrainSettings, settings_from
from plurum.training.sources import load_data

if typing.TYPE_CHECKING:
    from plurum.training.ensembles import (
        ImageEnsemble,
        ensemble_from_checkpoints,
        ensemble_from_models,
        ensemble_from_run,
    )

__all__ = [
    "FitReport",
    "FitSettings",
    "ImageEnsemble",
    "JudgeSettings",
    "Judgement",
    "LabelledImages",
    "TrainOptions",
    "TrainSettings",
    "Training",
    "ensemble_from_checkpoints",
    "ensemble_from_models",
    "ensemble_from_run",
    "fit_report",
    "fit_run",
    "judge_run",
    "load_data",
    "settings_from",
    "train_run",
    "write_fit",
    "write_report",
]

_ENSEMBLES = frozenset({"ImageEnsemble", "ensemble_from_checkpoints", "ensemble_from_models", "ensemble_from_run"})


def __getattr__(name: str) -> object:
    if name not in _ENSEMBLES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plurum.errors import needs_extra

    with needs_extra("training"):
        from plurum.training import ensembles
    return getattr(ensembles, name)
