"""The result of the outlier suite, as in outliers.json and outliers.csv."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from plurum.benchmarks.claims.outliers.material import TaskName
from plurum.files import csv_from_rows
from plurum.spec import Metadata

__all__ = ["KindFigure", "OutlierResult", "csv_from_outliers"]


class KindFigure(Metadata):
    """How a method tells one kind of outliers from a task's test images, with members of one training seed.

    Attributes:
        task: Task of the members.
        seed: Seed of data and training.
        method: Method.
        kind: Kind of outliers.
        auroc: Area under the ROC curve, 0 to 1.
        fpr95: Fraction of the task's test images that are flagged at the limit that flags 95 % of the outliers.
    """

    task: TaskName
    seed: int
    method: str
    kind: str
    auroc: float
    fpr95: float


class OutlierResult(Metadata):
    """Result of one run.

    Attributes:
        figures: All figures.
        archs: Architectures of the members.
        accuracy: Mean accuracy of the members on a task's test images, for each seed.
        machine: Machine of the measurement.
        versions: Package versions of the measurement.
    """

    figures: tuple[KindFigure, ...]
    archs: tuple[str, ...]
    accuracy: dict[TaskName, tuple[float, ...]]
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    def methods(self) -> list[str]:
        """Return the methods, in the order of the measurement."""
        return list(dict.fromkeys(one.method for one in self.figures))

    def tasks(self) -> list[TaskName]:
        """Return the tasks, in the order of the measurement."""
        return list(dict.fromkeys(one.task for one in self.figures))

    def aurocs(self, task: TaskName, method: str, kind: str) -> list[float]:
        """Return the AUROC of each seed."""
        return [one.auroc for one in self._of(method, [kind]) if one.task == task]

    def mean_accuracy(self, task: TaskName) -> float:
        """Return the mean accuracy over members and seeds."""
        return fmean(self.accuracy[task])

    def mean_auroc(self, method: str, kinds: Sequence[str], task: TaskName | None = None) -> float:
        """Return the mean AUROC over kinds, seeds and tasks, or those of one task."""
        return fmean(one.auroc for one in self._of(method, kinds) if task in {None, one.task})

    def mean_fpr95(self, method: str, kinds: Sequence[str], task: TaskName | None = None) -> float:
        """Return the mean FPR at 95 % detection over kinds, seeds and tasks, or those of one task."""
        return fmean(one.fpr95 for one in self._of(method, kinds) if task in {None, one.task})

    def _of(self, method: str, kinds: Sequence[str]) -> list[KindFigure]:
        return [one for one in self.figures if one.method == method and one.kind in kinds]


def csv_from_outliers(result: OutlierResult) -> str:
    """Return a table with a row for each figure."""
    rows = [
        [one.task, one.seed, one.method, one.kind, f"{one.auroc:.5f}", f"{one.fpr95:.5f}"] for one in result.figures
    ]
    return csv_from_rows([list(KindFigure.model_fields), *rows])
