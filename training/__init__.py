"""Images → members: data sets, splits by patient, trainer and checkpoints; and members → an ensemble that is fitted.

The trainer itself, which imports PyTorch, is `plurum.training.trainer`.
"""

from plurum.training.data import LabelledImages
from plurum.training.evaluation import judge_run
from plurum.training.findings import FitReport, write_fit
from plurum.training.fit import fit_report, fit_run
from plurum.training.judge import JudgeSettings
from plurum.training.judgement import Judgement
from plurum.training.members import Training, train_run
from plurum.training.report import write_report
from plurum.training.settings import FitSettings, TrainSettings, settings_from
from plurum.training.sources import load_data

__all__ = [
    "FitReport",
    "FitSettings",
    "JudgeSettings",
    "Judgement",
    "LabelledImages",
    "TrainSettings",
    "Training",
    "fit_report",
    "fit_run",
    "judge_run",
    "load_data",
    "settings_from",
    "train_run",
    "write_fit",
    "write_report",
]
