"""`plurum evaluate`: evaluate an ensemble, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.training import EvaluationSettings

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.client import EnsembleClient, Prediction
    from plurum.predictions.arrays import Bytes
    from plurum.run import Run
    from plurum.spec import Ensemble
    from plurum.training.statistics.results import Evaluation
    from plurum.voting import Verdict

__all__ = ["evaluate"]

_RULES = {
    "mean": "by mean probability",
    "max": "by each class's highest probability",
    "majority": "by the majority of their images",
}
# More columns do not fit on a screen.
_MOST_COLUMNS = 4
_BY_CLASS = ("sensitivity", "specificity", "ppv", "npv", "youden")
_COLUMNS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "nll", "ece", "aurc")


@with_options
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run fitted by `plurum fit`.", metavar="RUN")],
    settings: EvaluationSettings,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder for the report.", show_default="RUN/report, or RUN/report/served with --url"),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Evaluate the predictions of the server at HOST:PORT instead of PyTorch's.")
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Send requests over HTTP instead of gRPC.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON instead of tables.")] = False,
) -> None:
    """Evaluate an ensemble, its members and the best member on held-out images.

    Writes metrics.csv, metrics.json, plots and one self-contained report.html. Warns if the test images differ from
    the validation images, because then no promise of coverage or risk holds.

    [bold]Examples[/bold]

      plurum evaluate runs/digits

      plurum evaluate runs/digits --url 127.0.0.1:8001

      plurum evaluate runs/digits --split validation --out reports/validation --json

      plurum evaluate runs/tiles --positive CE --prevalence 0.2

      plurum evaluate runs/tiles --by site --by scanner

      plurum evaluate runs/digits --corruptions
    """
    from plurum.errors import SettingsError
    from plurum.files import check_folder
    from plurum.training.evaluation.report import write_report
    from plurum.training.evaluation.run import evaluate_run

    if http and url is None:
        raise SettingsError("--http: expected together with --url. Add --url HOST:PORT.")
    folder = out or (run / "report" / "served" if url else run / "report")
    check_folder(folder, "the report")
    evaluation = _evaluate_served(run, settings, url, http=http) if url else evaluate_run(run, settings)
    page = write_report(evaluation, folder)
    if as_json:
        write_json(evaluation)
    else:
        _print(evaluation, page)


def _evaluate_served(path: Path, settings: EvaluationSettings, url: str, *, http: bool) -> Evaluation:
    from plurum.client import EnsembleClient
    from plurum.run import Run
    from plurum.training.evaluation.run import corrupt_split, evaluate_verdicts, required_splits, subject_from_ensemble

    run = Run(path)
    ensemble = run.ensemble()
    # The figures of the members are of all images.
    with EnsembleClient(url, "http" if http else None, full=True) as client:
        _check_served(client, ensemble, url)
        members, has_cascade = client.served.members, client.served.has_cascade
        verdicts = {split: _predict_split(client, run, split, ensemble.classes) for split in required_splits(settings)}
        corrupted = None
        if settings.corruptions:
            blocks, number = corrupt_split(run, settings)
            images = (image for block in blocks for image in block)
            corrupted = _predict_images(client, images, number, "corrupted", ensemble.classes)
    expected = tuple(member.name for member in ensemble.members)
    note = (
        f"The server's members are {', '.join(members)}; the run's are {', '.join(expected)}. The targets (coverage, "
        f"risk, threshold) are the run's."
    )
    notes = () if members == expected else (note,)
    if has_cascade:
        notes = (
            *notes,
            "The server ran all members for each image, not its cascade; the figures are of the whole vote.",
        )
    subject = subject_from_ensemble(ensemble, f"the server at {url}", members, notes)
    return evaluate_verdicts(run, subject, verdicts, settings, corrupted)


def _check_served(client: EnsembleClient, ensemble: Ensemble, url: str) -> None:
    from plurum.errors import MetadataError

    served, image = client.served, ensemble.image
    # A server that does not disclose its config names classes by their indices.
    if served.classes not in {ensemble.classes, tuple(map(str, range(len(ensemble.classes))))}:
        raise MetadataError(
            f"--url: expected a server with the run's classes {', '.join(ensemble.classes)}, "
            f"got {', '.join(served.classes)} at {url}. Serve the export of this run."
        )
    if served.pixels_shape and served.pixels_shape[:2] != (image.height, image.width):
        height, width, _ = served.pixels_shape
        raise MetadataError(
            f"--url: expected a server for images of {image.height} × {image.width} pixels, "
            f"got {height} × {width} at {url}. Serve the export of this run."
        )


def _predict_split(client: EnsembleClient, run: Run, split: str, classes: tuple[str, ...]) -> Verdict:
    """Return the server's predictions for the run's images of a split."""
    pixels, rows = run.pixels(), run.table().rows(split)  # type: ignore[arg-type]
    return _predict_images(client, (pixels[row] for row in rows), len(rows), split, classes)


def _predict_images(
    client: EnsembleClient, images: Iterator[Bytes], number: int, name: str, classes: tuple[str, ...]
) -> Verdict:
    """Return the server's predictions for images at its input size."""
    from plurum.client import Failure
    from plurum.errors import MetadataError, ServerError
    from plurum.predictions.prediction import verdict_from_predictions
    from plurum.training.progress import show_progress

    predictions: list[Prediction] = []
    with show_progress(f"predicting {name} images", number, "images") as progress:
        for answer in client.stream(images):
            if isinstance(answer, Failure):
                raise ServerError(f"no prediction for {name} image {answer.index}: {answer.reason}")
            predictions.append(answer)
            progress(1, "")
    # A server that does not disclose its config names all but the labels by indices.
    if unknown := {prediction.label for prediction in predictions} - set(classes):
        raise MetadataError(f"the server predicts {min(unknown)!r}, which is not a class of the run")
    return verdict_from_predictions(predictions, classes)


def _print(evaluation: Evaluation, page: Path) -> None:
    from plurum.sentences import group_lines, percent_text
    from plurum.training.evaluation.robustness import robustness_line
    from plurum.training.statistics.wording import verdict_lines

    show_table(_comparison(evaluation))
    show_table(_members(evaluation))
    for table in (_decision(evaluation), *_net_benefit(evaluation), *_by_group(evaluation), *_corrupted(evaluation)):
        show_table(table)
    review, sets = evaluation.review, evaluation.sets
    lines = [
        *([robustness_line(evaluation.corruptions)] if evaluation.corruptions else []),
        *verdict_lines(evaluation),
        (
            f"Prediction sets contain the true class of {percent_text(sets.coverage)} of the images, and "
            f"{sets.mean_size:.2f} classes on average."
        ),
        (
            f"{percent_text(review.share)} of the predictions need review; of the others, "
            f"{percent_text(review.accuracy_kept)} are correct."
        ),
    ]
    if level := evaluation.patient_level:
        rule = evaluation.patient_rule or "mean"
        right = level.by_rule["ensemble"][rule].accuracy
        lines.append(f"Of {level.patients:,} patients, {percent_text(right)} are classified correctly, {_RULES[rule]}.")
    if diversity := evaluation.diversity:
        lines.append(
            f"Two members disagree on {diversity.disagreement:.1%} of the images, on average; at least one member is "
            f"correct on {diversity.oracle_accuracy:.1%}."
        )
    for column in evaluation.by_group:
        lines += (f"{column.column}: {line}" for line in group_lines(column))
    for line in (*lines, *evaluation.notes, f"report: {page}"):
        typer.echo(line)


def _comparison(evaluation: Evaluation) -> Table:
    from rich.box import SIMPLE

    from plurum.sentences import figure_text
    from plurum.training.statistics.metrics import distinct_metrics
    from plurum.training.statistics.wording import difference_text, significant_change

    columns = ("ensemble", f"best single: {evaluation.best_single}", "difference")
    table = new_table("metric", *columns, box=SIMPLE)
    ensemble, best = evaluation.judged[:2]
    styles = {"better": "green", "worse": "red", "": ""}
    for name, metric in distinct_metrics(len(evaluation.classes)).items():
        difference = evaluation.differences[name]
        table.add_row(
            f"{metric.title} {'↑' if metric.better == 'higher' else '↓'}",
            figure_text(ensemble.metrics[name]),
            figure_text(best.metrics[name]),
            difference_text(difference),
            style=styles[significant_change(difference, metric.better)],
        )
    return table


def _decision(evaluation: Evaluation) -> Table:
    """Return the figures of the decision: by class, or for two classes also those of predictions without review."""
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.sentences import figure_text
    from plurum.training.statistics.diagnoses import FIGURES

    title = f"figures of the decision by image, intervals {evaluation.diagnoses[0].intervals}"
    if len(evaluation.diagnoses) > _MOST_COLUMNS:
        table = new_table("class", *map(FIGURES.__getitem__, _BY_CLASS), title=title, box=SIMPLE)
        for one in evaluation.diagnoses:
            if one.answers == "all":
                table.add_row(escape(one.positive), *(figure_text(one.figures[name]) for name in _BY_CLASS))
        return table
    parts = {"all": "all", "unreviewed": "without review"}
    columns = (escape(f"{one.positive}: {parts[one.answers]}") for one in evaluation.diagnoses)
    table = new_table("positive class", *columns, title=title, box=SIMPLE)
    for name in evaluation.diagnoses[0].figures:
        table.add_row(FIGURES[name], *(figure_text(one.figures[name]) for one in evaluation.diagnoses))
    return table


def _net_benefit(evaluation: Evaluation) -> Iterator[Table]:
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.sentences import figure_text, number_text
    from plurum.training.statistics.wording import curve_rows

    for one in evaluation.diagnoses if evaluation.positive else ():
        if curve := one.decision_curve:
            title = f"deciding {escape(one.positive)} by its probability, at a prevalence of {curve.prevalence:.3f}"
            table = new_table("threshold", "net benefit", "deciding all", title=title, box=SIMPLE)
            for threshold, figure, whole in curve_rows(curve):
                table.add_row(f"{threshold:.2f}", figure_text(figure), number_text(whole))
            yield table


def _by_group(evaluation: Evaluation) -> Iterator[Table]:
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.sentences import figure_text, group_cell

    for column in evaluation.by_group:
        names = [escape(f"{one.name} ({one.patients:,} patients)") for one in column.groups]
        title = "with 95% intervals; * differs from all other images (corrected for all tests)"
        table = new_table(escape(column.column), *names, title=title, box=SIMPLE)
        for figure in column.groups[0].figures:
            cells = (f"{group_cell(one, figure)}{figure_text(one.figures[figure])[6:]}" for one in column.groups)
            table.add_row(escape(figure), *cells)
        yield table


def _corrupted(evaluation: Evaluation) -> Iterator[Table]:
    from rich.box import SIMPLE

    from plurum.sentences import figure_text, number_text
    from plurum.training.evaluation.robustness import FIGURES

    if not evaluation.corruptions:
        return
    names = [name for name in FIGURES if getattr(evaluation.corruptions[0], name) is not None]
    table = new_table("corruption", *map(FIGURES.__getitem__, names), title="on corrupted images", box=SIMPLE)
    for one in evaluation.corruptions:
        figures = (getattr(one, name) for name in names)
        cells = (number_text(figure) if isinstance(figure, float) else figure_text(figure)[:6] for figure in figures)
        table.add_row(f"{one.kind} {one.strength or ''}", *cells)
    yield table


def _members(evaluation: Evaluation) -> Table:
    from rich.box import SIMPLE

    from plurum.sentences import number_text
    from plurum.training.statistics.metrics import METRICS

    table = new_table("member", *(METRICS[name].title for name in _COLUMNS), box=SIMPLE)
    for judged in evaluation.judged:
        if judged.kind == "member":
            table.add_row(judged.name, *(number_text(judged.metrics[name].value) for name in _COLUMNS))
    return table
