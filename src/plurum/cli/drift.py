"""`plurum drift`: test whether predictions differ from a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.drift import DriftSettings

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.figures import Drift

__all__ = ["drift"]


@with_options
def drift(
    reference: Annotated[
        Path,
        typer.Argument(
            help="Predictions to compare with, written by `plurum predict --out`; or a run, or a model repository, "
            "whose ensemble.json has a baseline.",
            metavar="REFERENCE",
        ),
    ],
    settings: DriftSettings,
    answers: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Predictions to test, written by `plurum predict --out` (.csv, .jsonl or .parquet).",
            metavar="ANSWERS",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Test the predictions that a server has counted: HOST:PORT of Triton's metrics; repeat for several "
            "servers. REFERENCE is the repository that they serve.",
            metavar="HOST:PORT",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write drift.html, drift.json and drift.png into this folder.", metavar="FOLDER")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full report as JSON.")] = False,
) -> None:
    """Test whether predictions differ from a reference, without labels.

    Compares labels, review, confidence, probabilities, disagreement and outlier p-values. If files state patients,
    whole patients are permuted between the samples, so that several images of a patient give no false alarm. Against a
    baseline or a server's counts, the test assumes independent images. P-values are corrected for all outputs.

    Exit code 0: no drift found; 1: drift; 2: the test could not be made.

    [bold]Examples[/bold]

      plurum drift validation.csv november.csv

      plurum drift validation.parquet week1.parquet week2.parquet --out reports/drift

      plurum drift runs/digits november.csv --json

      plurum drift runs/digits/model_repository --metrics 127.0.0.1:8002
    """
    from plurum.errors import SettingsError
    from plurum.files import check_folder

    if bool(answers) == bool(metrics):
        got = "both" if answers else "none"
        raise SettingsError(f"ANSWERS: expected files of predictions or --metrics, got {got}. Give one of them.")
    if out:
        check_folder(out, "the report")
    found = _compare_served(reference, metrics, settings) if metrics else _compare(reference, answers or [], settings)
    if out:
        from plurum.training.drift.report import write_drift

        page = write_drift(found, out)
    if as_json:
        write_json(found)
    else:
        _print(found)
        if out:
            typer.echo(f"report: {page}")
    if found.is_found:
        raise typer.Exit(1)


def _compare(reference: Path, paths: list[Path], settings: DriftSettings) -> Drift:
    from plurum.spec import read_ensemble
    from plurum.training.drift.answers import read_answers
    from plurum.training.drift.detect import compare_answers, compare_with_baseline

    answers = read_answers(paths)
    if file := _ensemble_file(reference):
        return compare_with_baseline(read_ensemble(file), str(file), answers, settings)
    return compare_answers(read_answers([reference]), answers, settings)


def _compare_served(reference: Path, addresses: list[str], settings: DriftSettings) -> Drift:
    from plurum.errors import SettingsError, needs_extra
    from plurum.files import sha256_of
    from plurum.spec import read_ensemble
    from plurum.training.drift.detect import compare_counts
    from plurum.training.drift.served import counts_from_page

    with needs_extra("serving", "prometheus_client"):
        from plurum.serving.triton.prediction_counts import count_predictions

    file = _ensemble_file(reference)
    if file is None:
        raise SettingsError(
            f"--metrics: expected a run or a model repository as REFERENCE, got the file {reference}. Name the "
            "repository that is served."
        )
    ensemble = read_ensemble(file)
    found = count_predictions(addresses, sha256_of(file)[:12])
    counts = counts_from_page(ensemble, tuple(addresses), found.labels, found.confidence, found.reviews)
    return compare_counts(ensemble, str(file), counts, settings)


def _ensemble_file(reference: Path) -> Path | None:
    """Return the ensemble.json that `reference` names, or None for a file of predictions."""
    if reference.is_dir():
        return reference / "ensemble.json"
    return reference if reference.suffix.lower() == ".json" else None


def _print(found: Drift) -> None:
    from plurum.training.drift.report import drift_lines

    show_table(_outputs(found))
    show_table(_labels(found))
    for line in (*drift_lines(found), *found.notes):
        typer.echo(line)


def _outputs(found: Drift) -> Table:
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.sentences import number_text
    from plurum.training.drift.report import sort_shifts

    table = new_table("output", "mean, reference", "mean, predictions", "distance", "p-value", box=SIMPLE)
    for shift in sort_shifts(found):
        figures = map(number_text, (shift.reference, shift.answers, shift.distance, shift.p_value))
        table.add_row(escape(shift.output), *figures, style="red" if shift.p_value <= found.alpha else "")
    return table


def _labels(found: Drift) -> Table:
    from rich.box import SIMPLE
    from rich.markup import escape

    table = new_table("label", "reference", "predictions", "change", box=SIMPLE)
    for name, one, other in zip(found.classes, found.reference_labels, found.answers_labels, strict=True):
        table.add_row(escape(name), f"{one:.1%}", f"{other:.1%}", f"{100 * (other - one):+.1f} points")
    return table
