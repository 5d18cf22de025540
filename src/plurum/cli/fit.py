"""`plurum fit`: fit an ensemble from a run's members."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.fitting import FitSettings

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.spec import Ensemble, Scores
    from plurum.training import FitReport

__all__ = ["fit"]

_ESTIMATE = (
    "the review rule's risk is an estimate on validation images, not a promise; plurum train --certification 0.3 sets "
    "patients aside that can certify one"
)


@with_options
def fit(
    run: Annotated[Path, typer.Argument(help="A run trained by `plurum train`.", metavar="RUN")],
    settings: FitSettings,
    cascade_costs: Annotated[
        Path | None,
        typer.Option(
            help="Order the cascade's members by their times in this repository of the run. By default, the member "
            "with the fewest multiply–adds runs first.",
            metavar="REPO",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full report as JSON.")] = False,
) -> None:
    """Fit the vote of the members on the run's validation images, and write RUN/ensemble.json.

    Drops a member if the vote is significantly better without it. The others keep equal weights unless fitted weights
    are significantly better (95 % interval excludes 0). Writes RUN/report/fit.json and its plots.

    [bold]Examples[/bold]

      plurum fit runs/digits

      plurum fit runs/tiles --alpha 0.05 --risk 0.005

      plurum fit runs/tiles --risk 0.01 --confidence 0.95

      plurum fit runs/tiles --select greedy

      plurum fit runs/tiles --mode stack

      plurum fit runs/tiles --outlier-alpha 0.05

      plurum fit runs/tiles --prior CE=0.7 --prior LAA=0.3

      plurum fit runs/tiles --prior-from ward/2026

      plurum fit runs/tiles --positive CE --sensitivity 0.95

      plurum fit runs/tiles --positive CE --costs costs.csv

      plurum fit runs/tiles --cascade --cascade-risk auto
    """
    from plurum.files import check_folder
    from plurum.run import Run
    from plurum.training import fit_report, write_fit

    Run(run).check()
    check_folder(run / "report", "the report")
    report = fit_report(run, settings, None if cascade_costs is None else _times_ms(cascade_costs, settings))
    write_fit(report, run / "report")
    if as_json:
        write_json(report)
        return
    plots, following = f"plots: {run / 'report'}/fit_*.png", f"next: plurum export {run}"
    show_table(_table(report), *_lines(report), plots, following)


def _times_ms(repository: Path, settings: FitSettings) -> dict[str, float]:
    from plurum.errors import SettingsError, needs_extra
    from plurum.repository.listing import model_folders

    if not settings.cascade:
        raise SettingsError("--cascade-costs: expected --cascade with it, got none. Add it")
    model_folders(repository)
    with needs_extra("export", "torch", "timm", "onnx", "onnxruntime"):
        from plurum.export import member_latencies
    return member_latencies(repository)


def _table(report: FitReport) -> Table:
    from rich.box import SIMPLE

    from plurum.training.statistics.wording import difference_text

    columns = ("weight", "NLL without it", "validation accuracy", "NLL", "test accuracy", "NLL")
    table = new_table("member", *columns, box=SIMPLE)
    for name, member in report.members.items():
        weight = "left out" if name in report.left_out else f"{member.weight:.3f}"
        without = "" if member.contribution is None else difference_text(member.contribution)
        table.add_row(name, weight, without, *_cells(member.scores["validation"]), *_cells(member.scores["test"]))
    table.add_section()
    scores = report.ensemble.scores
    table.add_row("ensemble", "", "", *_cells(scores["validation"]), *_cells(scores["test"]))
    return table


def _cells(scores: Scores) -> tuple[str, str]:
    return f"{scores.accuracy:.4f}", f"{scores.nll:.4f}"


def _lines(report: FitReport) -> list[str]:
    """Return the results that the table does not contain."""
    from plurum.training.fitting.outliers import outlier_lines
    from plurum.training.fitting.report import point_lines

    ensemble = report.ensemble
    alpha = ensemble.conformal.alpha if ensemble.conformal else 1.0
    reviewed, covered = report.reviewed, report.covered
    return [
        *_unfinished_lines(report),
        *_left_out_lines(report),
        _weights_line(report),
        f"temperature of the vote: {ensemble.voting.temperature:.3f}",
        *_prior_lines(report),
        *point_lines(report),
        (
            f"prediction sets: {covered['test']:.1%} of test images have their true class in them "
            f"(target: {1 - alpha:.1%})"
        ),
        (
            f"review: {_review_condition(ensemble)}: "
            f"{reviewed['validation']:.1%} of validation predictions, {reviewed['test']:.1%} of test predictions"
        ),
        *_promise_lines(report),
        *(report.cascade.lines if report.cascade else ()),
        *outlier_lines(ensemble, report.outliers, has_folds=report.folds is not None),
        *_patient_lines(report),
        _best_member_line(report),
    ]


def _review_condition(ensemble: Ensemble) -> str:
    from plurum.sentences import review_condition

    condition = review_condition(ensemble.rule, ensemble.classes)
    if condition is None:
        return f"below a confidence of {ensemble.review.threshold:.4f}, or with more than one class in the set"
    return f"at {condition}"


def _promise_lines(report: FitReport) -> list[str]:
    if report.promise_line is not None:
        return [report.promise_line]
    # An operating point states its own confidence.
    return [] if report.ensemble.operating_point else [_ESTIMATE]


def _unfinished_lines(report: FitReport) -> list[str]:
    if not report.unfinished:
        return []
    names, many = ", ".join(report.unfinished), len(report.unfinished) > 1
    line = (
        f"not finished, so left out: {names}; run the same plurum train command again to finish "
        f"{'them' if many else 'it'}, then fit again"
    )
    return [line]


def _left_out_lines(report: FitReport) -> list[str]:
    from plurum.training.statistics.wording import difference_text

    lines = []
    for name in report.left_out:
        tried, figure = report.weights_tried, report.members[name].contribution
        if report.select == "greedy":
            lines.append(f"left out: {name}, which greedy selection never chose")
        elif tried is not None and name in tried:
            lines.append(f"left out: {name}, whose fitted weight is 0; --select all keeps it")
        elif figure is not None:
            lines.append(
                f"left out: {name}; without it the vote's NLL is {difference_text(figure)}, significantly lower; "
                f"--select all keeps it"
            )
    return lines


def _weights_line(report: FitReport) -> str:
    low, high = report.nll_saved
    interval = f"{low:+.4f} to {high:+.4f} nats of NLL"
    if report.weights_tried is None:
        return f"stacking saves {interval} against equal weights, on images held out by cross-validation"
    from plurum.voting import MODES

    mode = report.ensemble.voting.mode
    if not MODES[mode].has_weights:
        return f"weights: equal, as in every {mode} vote"
    if len(report.weights_tried) == 1:
        return "weights: a single member votes"
    tried = ", ".join(f"{weight:.3f}" for weight in report.weights_tried.values())
    if report.select == "greedy":
        return f"weights: {tried}, by greedy selection, save {interval} against equal ones of the same members"
    taken = "taken" if low > 0 else "not significant, so the weights stay equal"
    return f"weights: {tried} would save {interval}: {taken}"


def _prior_lines(report: FitReport) -> list[str]:
    ratio = report.ensemble.voting.prior_ratio
    if report.prior is None or ratio is None:
        return []
    shares = zip(report.prior.items(), ratio, strict=True)
    fractions = ", ".join(f"{name} {share:.3f} (here {share / times:.3f})" for (name, share), times in shares)
    return [f"prior: corrected for class fractions {fractions}; all scores weight images accordingly"]


def _patient_lines(report: FitReport) -> list[str]:
    from plurum.sentences import percent_text

    level, rule = report.patient_level, report.ensemble.patient_rule
    if level is None or rule is None:
        return []
    accuracies = {name: scores.accuracy for name, scores in level.by_rule["ensemble"].items()}
    others = ", ".join(f"{name}: {percent_text(figure)}" for name, figure in accuracies.items() if name != rule)
    return [
        f"patients, by {rule}: {percent_text(accuracies[rule])} of {level.patients} test patients correct ({others})"
    ]


def _best_member_line(report: FitReport) -> str:
    from plurum.training.statistics.wording import comparison_line

    if len(report.members) == 1:
        only = "a single finished member" if report.unfinished else "a single member"
        return f"the run has {only}, so there is no vote to evaluate"
    if [member.name for member in report.ensemble.members] == [report.best_single]:
        return f"{report.best_single} is the only member kept, as no other member improves the vote"
    summary = {
        "better": "the ensemble beats its best member",
        "no different": "the ensemble is no different from its best member",
        "mixed": "the ensemble is better than its best member by some metrics and worse by others",
        "worse": "the ensemble is worse than its best member",
    }[report.outcome]
    sentence = comparison_line(report.differences, report.best_single)
    return f"on test images {summary}: {sentence[0].lower()}{sentence[1:].rstrip('.')}"
