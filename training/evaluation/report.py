"""A judgement as files: CSV for spreadsheets, JSON for programs, pictures and one page for people."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from plurum.errors import OutputError, needs_extra
from plurum.files import atomic_file, write_text
from plurum.training.evaluation.page import PAGE
from plurum.training.evaluation.plots import plots_from_judgement
from plurum.training.statistics.judgement import Figure, Judgement
from plurum.training.statistics.metrics import BINS, METRICS, PER_CLASS
from plurum.training.statistics.patients import RULES
from plurum.training.statistics.wording import (
    beyond_chance,
    difference_text,
    figure_text,
    number_text,
    percent_text,
    verdict_lines,
)

__all__ = ["REPORT_FILES", "check_folder", "csv_from_judgement", "html_from_judgement", "write_report"]

# Besides the pictures.
REPORT_FILES = ("metrics.csv", "metrics.json", "report.html")
# What the table of members has room for.
_SHOWN = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "nll", "brier", "ece", "aurc")
_MEANINGS = {
    "accuracy": "Share of right answers.",
    "balanced accuracy, precision, recall, specificity, F1, ROC-AUC, average precision": (
        "Each class against all others, then the mean over classes, each counting the same. Recall is also called "
        "sensitivity, and its mean balanced accuracy."
    ),
    "NLL": "Mean of -log of the probability given to the true class, in nats: a sure wrong answer costs most.",
    "Brier score": "Mean over images of the squared differences between probabilities and truth, summed over classes.",
    "ECE": f"Expected calibration error: mean gap between confidence and accuracy over {BINS} bins of equal width.",
    "AURC": (
        "Area under the risk–coverage curve: the share of wrong answers among the surest 1, 2, … all images, averaged."
    ),
    "AUGRC": "Likewise, with the wrong answers' share of all images: how many wrong answers slip through, on average.",
    "95% interval": (
        "Where the figure would fall in 95 of 100 samples like this one, found by drawing with replacement: patients "
        "with all their images where patients are known, else images."
    ),
}


def write_report(judgement: Judgement, folder: Path) -> Path:
    """Write the report's files into `folder`, each whole or not at all, the page last, and return the page's path.

    What else lies there stays, but for pictures of an earlier report that this one has not.

    Raises:
        OutputError: `folder` is a file or can't be written to.
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    check_folder(folder)
    pictures = plots_from_judgement(judgement)
    page = html_from_judgement(judgement, pictures)
    write_text(folder / "metrics.csv", csv_from_judgement(judgement))
    write_text(folder / "metrics.json", judgement.model_dump_json(indent=1) + "\n")
    for name, picture in pictures.items():
        with atomic_file(folder / f"{name}.png") as hidden:
            hidden.write_bytes(picture)
    if "diversity" not in pictures:
        (folder / "diversity.png").unlink(missing_ok=True)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def check_folder(folder: Path) -> None:
    """Make sure that a report can go there before the work for it begins.

    Raises:
        OutputError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder for the report")


def csv_from_judgement(judgement: Judgement) -> str:
    """Return all figures as CSV: name, class (empty for all of them), metric, value, low, high.

    `ensemble - best single` is the difference of the two; an empty cell is a figure that does not exist.
    """
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["name", "class", "metric", "value", "low", "high"])
    for name, label, metric, figure in _figures(judgement):
        numbers = ("" if number is None else f"{number:.6g}" for number in (figure.value, figure.low, figure.high))
        rows.writerow([name, label, metric, *numbers])
    return file.getvalue()


def _figures(judgement: Judgement) -> Iterator[tuple[str, str, str, Figure]]:
    for judged in judgement.judged:
        for label, figures in {"": judged.metrics, **judged.per_class}.items():
            for metric, figure in figures.items():
                yield judged.name, label, metric, figure
    for metric, figure in judgement.differences.items():
        yield "ensemble - best single", "", metric, figure
    yield "ensemble", "", "coverage", judgement.sets.coverage
    for label, sets in judgement.sets.by_class.items():
        yield "ensemble", label, "coverage", sets.coverage
    yield "ensemble", "", "review_share", judgement.review.share
    yield "ensemble", "", "accuracy_without_review", judgement.review.accuracy_kept
    for name, by_rule in judgement.patient_level.by_rule.items() if judgement.patient_level else ():
        for rule, scores in by_rule.items():
            yield name, "", f"patient_accuracy_{rule}", scores.accuracy
            if scores.nll:
                yield name, "", f"patient_nll_{rule}", scores.nll


def html_from_judgement(judgement: Judgement, pictures: dict[str, bytes]) -> str:
    """Return the page, with the pictures (PNG, by name) inside; it asks for nothing from outside.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    with needs_extra("training"):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "beyond_chance": beyond_chance,
        "difference": difference_text,
        "figure": figure_text,
        "number": number_text,
        "percent": percent_text,
    }
    return environment.from_string(PAGE).render(
        j=judgement,
        metrics=METRICS,
        per_class=PER_CLASS,
        shown=_SHOWN,
        rules=RULES,
        meanings=_MEANINGS,
        verdict=verdict_lines(judgement),
        pictures={name: base64.b64encode(picture).decode("ascii") for name, picture in pictures.items()},
    )
