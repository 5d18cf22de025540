"""Train members from labelled images; fit, evaluate and calibrate the ensemble of them.

Names that need PyTorch, such as `Trainer` and `ImageEnsemble`, are imported on first access.
"""

from __future__ import annotations

import importlib
import typing

from plurum.figures import Drift
from plurum.settings.calibration import CalibrateSettings
from plurum.settings.distilling import DistillSettings
from plurum.settings.drift import DriftSettings
from plurum.settings.fitting import FitSettings
from plurum.settings.members import AddSettings
from plurum.settings.options import settings_from
from plurum.settings.training import EvaluationSettings, TrainOptions, TrainSettings
from plurum.training.adding.add import AddedMember, add_member
from plurum.training.calibration.calibrate import calibrate_run
from plurum.training.calibration.report import CalibrationReport
from plurum.training.data.examples import Examples
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.data.report import DataReport, data_report, read_data_report, report_lines
from plurum.training.data.sources import load_data
from plurum.training.distilling.distill import distill_run
from plurum.training.distilling.report import DistillationReport
from plurum.training.drift.answers import Answers, read_answers
from plurum.training.drift.detect import compare_answers
from plurum.training.drift.report import write_drift
from plurum.training.evaluation.report import write_report
from plurum.training.evaluation.run import evaluate_run
from plurum.training.fitting.fit import fit_report, fit_run
from plurum.training.fitting.output import write_fit
from plurum.training.fitting.report import FitReport
from plurum.training.learning.run import TrainedRun, train_run
from plurum.training.statistics.results import Evaluation

# Names of earlier versions.
Training = TrainedRun
JudgeSettings = EvaluationSettings
Judgement = Evaluation
judge_run = evaluate_run

if typing.TYPE_CHECKING:
    from plurum.training.inference.ensembles import (
        ImageEnsemble,
        ensemble_from_checkpoints,
        ensemble_from_models,
        ensemble_from_run,
    )
    from plurum.training.learning.trainer import TrainedModel, Trainer

    Trained = TrainedModel

__all__ = [
    "AddSettings",
    "AddedMember",
    "Answers",
    "CalibrateSettings",
    "CalibrationReport",
    "DataReport",
    "DistillSettings",
    "DistillationReport",
    "Drift",
    "DriftSettings",
    "Evaluation",
    "EvaluationSettings",
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
    "TrainedModel",
    "TrainedRun",
    "Trainer",
    "Training",
    "add_member",
    "calibrate_run",
    "compare_answers",
    "data_report",
    "distill_run",
    "ensemble_from_checkpoints",
    "ensemble_from_models",
    "ensemble_from_run",
    "evaluate_run",
    "fit_report",
    "fit_run",
    "judge_run",
    "load_data",
    "read_answers",
    "read_data_report",
    "report_lines",
    "settings_from",
    "train_run",
    "write_drift",
    "write_fit",
    "write_report",
]

_LATER = {
    "ImageEnsemble": "inference.ensembles",
    "Trained": "learning.trainer",
    "TrainedModel": "learning.trainer",
    "Trainer": "learning.trainer",
    "ensemble_from_checkpoints": "inference.ensembles",
    "ensemble_from_models": "inference.ensembles",
    "ensemble_from_run": "inference.ensembles",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plurum.errors import needs_extra

    with needs_extra("training"):
        module = importlib.import_module(f"plurum.training.{_LATER[name]}")
    return getattr(module, "TrainedModel" if name == "Trained" else name)
