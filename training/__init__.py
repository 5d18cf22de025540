"""Images → members: data sets, splits by patient, trainer and checkpoints; and members → an ensemble that is fitted.

What imports PyTorch, the trainer and ensembles that can be called, is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import typing

from plurum.training.data import LabelledImages
from plurum.training.data_report import DataReport, data_report, read_data_report, report_lines
from plurum.training.evaluation import judge_run
from plurum.training.examples import Examples
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
    from plurum.training.trainer import Trained, Trainer

__all__ = [
    "DataReport",
    "Examples",
    "FitReport",
    "FitSettings",
    "ImageEnsemble",
    "JudgeSettings",
    "Judgement",
    "LabelledImages",
    "TrainOptions",
    "TrainSettings",
    "Trained",
    "Trainer",
    "Training",
    "data_report",
    "ensemble_from_checkpoints",
    "ensemble_from_models",
    "ensemble_from_run",
    "fit_report",
    "fit_run",
    "judge_run",
    "load_data",
    "read_data_report",
    "report_lines",
    "settings_from",
    "train_run",
    "write_fit",
    "write_report",
]

_LATER = {
    "ImageEnsemble": "ensembles",
    "Trained": "trainer",
    "Trainer": "trainer",
    "ensemble_from_checkpoints": "ensembles",
    "ensemble_from_models": "ensembles",
    "ensemble_from_run": "ensembles",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plurum.errors import needs_extra

    with needs_extra("training"):
        module = importlib.import_module(f"plurum.training.{_LATER[name]}")
    return getattr(module, name)
