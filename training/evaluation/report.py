"""Write an evaluation to files: CSV, JSON, plots and one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plurum.files import check_folder, csv_from_rows, write_bytes, write_text
from plurum.sentences import group_cell, group_lines
from plurum.training.drift.report import drift_lines, sort_shifts
from plurum.training.evaluation.page import PAGE
from plurum.training.evaluation.plots import plots_from_evaluation
from plurum.training.evaluation.robustness import FIGURES as CORRUPTED
from plurum.training.evaluation.robustness import robustness_line
from plurum.training.statistics.diagnoses import FIGURES
from plurum.training.statistics.metrics import METRICS, PER_CLASS, class_title, distinct_metrics
from plurum.training.statistics.page import html_from_template
from plurum.training.statistics.patients import RULES
from plurum.training.statistics.results import Estimate, Evaluation
from plurum.training.statistics.wording import curve_rows, verdict_lines

__all__ = ["REPORT_FILES", "csv_from_evaluation", "html_from_evaluation", "write_report"]

# Files of a report, apart from the plots.
REPORT_FILES = ("metrics.csv", "metrics.json", "report.html")
# Metrics in the table of members, which has limited room.
_SHOWN = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "nll", "brier", "ece", "aurc")
_DECISION = {
    "sensitivity, specificity": "Fraction of the positive class's images that are predicted as it; fraction of all "
    "other images that are not.",
    "PPV, NPV": "Fraction of the images predicted as the positive class that belong to it; fraction of those not "
    "predicted as it that do not. Both depend on how common the class is; a stated prevalence replaces that of these "
    "images.",
    "LR+, LR-": "Likelihood ratios: sensitivity / (1 - specificity), and (1 - sensitivity) / specificity. Odds of the "
    "class before the prediction times this number are the odds after it.",
    "Youden's J": "Sensitivity + specificity - 1: 0 for guessing, 1 without errors.",
    "net benefit": "True positives minus false positives times t / (1 - t), as a fraction of all images, if the class "
    "is decided from a probability of t on. A test is worth using where it is above both deciding all and deciding "
    "none.",
}
_INTERVAL = (
    "Range in which the figure falls in 95 of 100 samples like this one, estimated by drawing with replacement: "
    "patients with all their images if patients are known, else images."
)


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the report's files into `folder`, each atomically, and return the path of the page.

    Other files in the folder stay, except plots of an earlier report that this one lacks.

    Raises:
        OutputError: `folder` is a file or can't be written.
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    check_folder(folder, "the report")
    pictures = plots_from_evaluation(evaluation)
    page = html_from_evaluation(evaluation, pictures)
    write_text(folder / "metrics.csv", csv_from_evaluation(evaluation))
    write_text(folder / "metrics.json", evaluation.model_dump_json(indent=1) + "\n")
    for name, picture in pictures.items():
        write_bytes(folder / f"{name}.png", picture)
    for name in {"corruptions", "diversity", "decision_curve", "drift"} - set(pictures):
        (folder / f"{name}.png").unlink(missing_ok=True)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def csv_from_evaluation(evaluation: Evaluation) -> str:
    """Return all figures as CSV: name, class (empty for all classes), metric, value, low, high.

    `ensemble - best single` is the difference of the two; an empty cell marks a missing figure.
    """
    rows: list[list[object]] = [["name", "class", "metric", "value", "low", "high"]]
    for name, label, metric, figure in _estimates(evaluation):
        numbers = ("" if number is None else f"{number:.6g}" for number in (figure.value, figure.low, figure.high))
        rows.append([name, label, metric, *numbers])
    return csv_from_rows(rows)


def _estimates(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Estimate]]:
    for judged in evaluation.judged:
        for label, figures in {"": judged.metrics, **judged.per_class}.items():
            for metric, figure in figures.items():
                yield judged.name, label, metric, figure
    for metric, figure in evaluation.differences.items():
        yield "ensemble - best single", "", metric, figure
    yield "ensemble", "", "coverage", evaluation.sets.coverage
    for label, sets in evaluation.sets.by_class.items():
        yield "ensemble", label, "coverage", sets.coverage
    yield from _decision_estimates(evaluation)
    yield from _group_estimates(evaluation)
    for shift in evaluation.drift.shifts if evaluation.drift else ():
        yield "test - validation", "", f"distance_{shift.output}", Estimate(value=shift.distance, low=None, high=None)
    yield from _corruption_estimates(evaluation)
    yield "ensemble", "", "review_share", evaluation.review.share
    yield "ensemble", "", "accuracy_without_review", evaluation.review.accuracy_kept
    for name, by_rule in evaluation.patient_level.by_rule.items() if evaluation.patient_level else ():
        for rule, scores in by_rule.items():
            yield name, "", f"patient_accuracy_{rule}", scores.accuracy
            if scores.nll:
                yield name, "", f"patient_nll_{rule}", scores.nll


def _decision_estimates(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Estimate]]:
    for diagnosis in evaluation.diagnoses:
        part = "decision" if diagnosis.answers == "all" else "unreviewed"
        for metric, figure in diagnosis.figures.items():
            yield "ensemble", diagnosis.positive, f"{part}_{metric}", figure


def _group_estimates(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Estimate]]:
    for column in evaluation.by_group:
        for group in column.groups:
            for metric, figure in group.figures.items():
                yield f"ensemble, {column.column} {group.name}", "", metric.replace(" ", "_"), figure


def _corruption_estimates(evaluation: Evaluation) -> Iterator[tuple[str, str, str, Estimate]]:
    for one in evaluation.corruptions:
        for metric in CORRUPTED:
            figure = getattr(one, metric)
            if isinstance(figure, float):
                figure = Estimate(value=figure, low=None, high=None)
            if figure is not None:
                yield f"ensemble, {one.kind} {one.strength}", "", metric, figure


def html_from_evaluation(evaluation: Evaluation, pictures: dict[str, bytes]) -> str:
    """Return the HTML page with the plots (PNG, by name) embedded; it loads no external resources.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    corruptions = evaluation.corruptions
    return html_from_template(
        PAGE,
        f"{evaluation.name}: evaluation on {evaluation.split} images",
        pictures,
        j=evaluation,
        metrics=METRICS,
        distinct=distinct_metrics(len(evaluation.classes)),
        per_class={name: class_title(name) for name in PER_CLASS},
        figures=FIGURES,
        curve_rows=curve_rows,
        group_cell=group_cell,
        group_lines=group_lines,
        shown=_SHOWN,
        rules=RULES,
        meanings=_meanings(len(evaluation.classes)),
        verdict=[*([robustness_line(corruptions)] if corruptions else []), *verdict_lines(evaluation)],
        corrupted={
            name: title
            for name, title in CORRUPTED.items()
            if corruptions and getattr(corruptions[0], name) is not None
        },
        drift=drift_lines(evaluation.drift) if evaluation.drift else [],
        shifts=sort_shifts(evaluation.drift) if evaluation.drift else [],
    )


def _meanings(classes: int) -> dict[str, str]:
    """Return the definitions of metrics by their titles; metrics with the same definition share one."""
    titles: dict[str, list[str]] = {}
    for metric in distinct_metrics(classes).values():
        titles.setdefault(metric.meaning, []).append(metric.title)
    return {", ".join(names): meaning for meaning, names in titles.items()} | _DECISION | {"95% interval": _INTERVAL}
