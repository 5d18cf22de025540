"""Model cards: they state what the files of the run say, and what is not known."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from markdown_it import MarkdownIt

from plurum.errors import RepositoryError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.manifest import PublishedGraph, read_manifest
from plurum.export.repository.cards.card import ModelCard, card_from_repository
from plurum.export.repository.cards.card_files import CARD_FILES
from plurum.export.repository.cards.facts import CardFacts, facts_from_run
from plurum.export.repository.cards.markdown import markdown_from_card
from plurum.export.repository.cards.markup import escape, table_from_rows
from plurum.files import sha256_of
from plurum.repository.listing import check_exported
from plurum.run import Run
from plurum.sentences import figure_text, percent_text
from plurum.settings.training import EvaluationSettings
from plurum.spec import DecisionPromise, Ensemble, RefusedPromise, Review, ReviewPromise, write_metadata
from plurum.training import (
    CalibrateSettings,
    FitReport,
    FitSettings,
    calibrate_run,
    evaluate_run,
    fit_report,
    write_fit,
    write_report,
)
from plurum.training.statistics.results import Evaluation
from tests.cli.command_line import CommandLine
from tests.sample_runs.decided_run import add_column, build_decided_run
from tests.sample_runs.site_images import write_site

SETTINGS = ExportSettings(max_batch_size=8, form="chain")
USE = {"purpose": "Triage of <b>clots</b>", "out_of_scope": ["Children", "Other | scanners"], "contact": "a@b.example"}
HOSTILE = r"""
<script>alert(1)</script>
a | b
1. first
2) second
- item
+ item
# heading
===
---
***
> quote
**bold** _it_ `code` ~~gone~~
[a](http://x.example) ![b](c)
[a]: http://x.example
\| \\ \
&amp; &lt;
<!-- x -->
- [ ] task
"""


def card_of(repository: Path) -> ModelCard:
    return ModelCard.model_validate_json((repository / "model_card.json").read_bytes())


def markdown_of(repository: Path) -> str:
    return (repository / "model_card.md").read_text(encoding="utf-8")


def rendered(markdown: str) -> str:
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page)).strip()


@pytest.mark.parametrize("text", [*HOSTILE.strip().splitlines(), "a\n\n# b"])
def test_a_text_is_shown_as_it_is(text: str) -> None:
    expected = " ".join(text.split())
    for page, tags in (
        (rendered(f"- {escape(text)}"), {"ul", "li"}),
        (rendered(f"{escape(text)}"), {"p"}),
        (rendered(table_from_rows(("head",), [(escape(text),)])), {"table", "thead", "tbody", "tr", "th", "td"}),
    ):
        assert text_of(page).removeprefix("head").strip() == expected
        assert set(re.findall(r"<(\w+)", page)) == tags


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FitReport, Evaluation]:
    """Run with an operating point, a report of the fit and one of test images by site."""
    run = build_decided_run(tmp_path_factory.mktemp("decided") / "run")
    add_column(run, "si|te", ["a", "b"])
    fit = fit_report(run.path, FitSettings(positive="CE", sensitivity=0.9, draws=100))
    write_fit(fit, run.report_folder)
    found = evaluate_run(run.path, EvaluationSettings(draws=100, by=("si|te",), prevalence=0.2))
    write_report(found, run.report_folder)
    return run, fit, found


@pytest.mark.slow
def test_a_card_states_the_reports_of_its_run(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path, plurum: CommandLine
) -> None:
    run, fit, found = decided
    (tmp_path / "use.json").write_text(json.dumps(USE))
    words = ("export", run.path, "--out", tmp_path / "out", "--fused", "--intended-use", tmp_path / "use.json")
    assert f"model card: {tmp_path / 'out' / 'model_card.md'}\n" in plurum.said(*words)
    card, ensemble, text = card_of(tmp_path / "out"), run.ensemble(), markdown_of(tmp_path / "out")
    check_members_and_files(card, tmp_path / "out")
    table = run.table()
    assert {split: one.images for split, one in card.splits.items()} == ensemble.data.images
    rows = table.rows("test").tolist()
    assert card.splits["test"].patients == len({table.patients[row] for row in rows})
    assert card.splits["test"].by_class == {"CE": int((table.labels[rows] == 0).sum()), "LAA": len(rows) - 92}
    (figures,) = card.figures
    assert figures.metrics == found.ensemble.metrics
    assert [one.figures for one in figures.diagnoses] == [one.figures for one in found.diagnoses]
    assert figures.by_group == found.by_group
    assert card.decisions == fit.decisions
    assert card.decisions is not None
    assert card.decisions["test"].patients is not None
    for figure in (
        found.ensemble.metrics["accuracy"],
        found.diagnoses[0].figures["sensitivity"],
        found.diagnoses[1].figures["npv"],
        found.diagnoses[0].figures["ppv_at_prevalence"],
        found.review.accuracy_kept,
        found.by_group[0].groups[1].figures["specificity"],
        card.decisions["test"].patients.specificity,
    ):
        assert percent_text(figure) in text
    assert f"CE from a probability of {ensemble.rule.point.threshold:.4f} on: sensitivity of at least 0.9" in text  # type: ignore[union-attr]
    command = "plurum evaluate RUN --split validation --out RUN/report/validation"
    assert card.missing == (f"Figures on validation images with intervals: run {command}, then export again.",)
    page = rendered(text)
    assert "<b>" not in page
    assert [title in text_of(page) for title in ("Triage of <b>clots</b>", "Other | scanners", "By si|te")] == [
        True
    ] * 3
    assert "Not stated: users, limits, licence." in text
    # Every row of every table has the cells of its head.
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert all(len({row.count("|") for row in found_table.splitlines()}) == 1 for found_table in tables)
    assert page.count("<table>") == len(tables) == 8


def check_members_and_files(card: ModelCard, repository: Path) -> None:
    ensemble = json.loads((repository / "ensemble.json").read_text())
    assert [one.checkpoint_sha256 for one in card.members] == [one["sha256"] for one in ensemble["members"]]
    assert [one.weight for one in card.members] == ensemble["voting"]["weights"]
    assert {one.precision for one in card.members} == {"fp32"}
    assert set(card.files) == {"ensemble.json", "fused/1/model.onnx", *(one.graph for one in card.members)}
    assert card.files == {name: sha256_of(repository / name) for name in card.files}
    assert card.release == card.files["ensemble.json"][:12]
    parities = json.loads((repository / "parity.json").read_text())["artefacts"]
    assert [one.model_dump(mode="json") for one in card.parity] == [one | {"faults": []} for one in parities]


def test_figures_of_another_ensemble_are_named_as_missing(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path
) -> None:
    run = Run(shutil.copytree(decided[0].path, tmp_path / "run"))
    known = facts_from_run(run)
    assert [one.split for one in known.figures] == ["test"]
    ensemble = run.ensemble()
    calmer = ensemble.voting.model_copy(update={"temperature": 1.5})
    write_metadata(run.ensemble_file, ensemble.model_copy(update={"voting": calmer}))
    stale = facts_from_run(run)
    assert (stale.figures, stale.decisions, stale.promise_line) == ((), None, None)
    assert stale.splits == known.splits
    assert stale.missing == (
        "Figures on test images with intervals: run plurum evaluate RUN, then export again.",
        *known.missing,
        "Figures by si|te: run plurum evaluate RUN --by COLUMN, then export again.",
    )
    other = run.data().model_copy(update={"fingerprint": "0" * 64})
    write_metadata(run.data_folder / "contract.json", other)
    assert facts_from_run(run).splits is None
    assert "other images than the ensemble was fitted on" in facts_from_run(run).missing[0]


def test_figures_of_a_server_or_of_a_broken_report_are_not_used(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path
) -> None:
    run = Run(shutil.copytree(decided[0].path, tmp_path / "run"))
    served = decided[2].model_copy(update={"answered_by": "the server at a:1"})
    write_metadata(run.report_folder / "metrics.json", served)
    (run.report_folder / "fit.json").write_text("{")
    facts = facts_from_run(run)
    assert (facts.figures, facts.decisions) == ((), None)
    # A second folder of the report counts too.
    write_metadata(run.report_folder / "again" / "metrics.json", decided[2])
    assert [one.split for one in facts_from_run(run).figures] == ["test"]


def test_the_same_export_gives_the_same_card(run: Run, repository: Path, tmp_path: Path) -> None:
    repository_from_run(run, tmp_path / "elsewhere", SETTINGS)
    for name in CARD_FILES:
        assert (tmp_path / "elsewhere" / name).read_bytes() == (repository / name).read_bytes()
    text = markdown_of(repository)
    assert str(run.path) not in text
    assert "**Label**: the most probable class." in text
    assert "200 images" not in text
    # The run has no report; ensemble.json has scores without intervals.
    assert (
        "40 images, from the fit: accuracy 0.1000, NLL 2.3000 nats. Intervals of these figures are not known." in text
    )
    assert "Not stated. Write `RUN/intended_use.json`" in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("certified", "certified by the export on the predictions that are served: 2 errors in 700"),
        (
            "provisional",
            "provisional: certified on PyTorch's predictions, not on those that are served: 2 errors in 700",
        ),
    ],
)
def test_a_promise_says_how_it_was_certified(
    run: Run, repository: Path, tmp_path: Path, status: Literal["certified", "provisional"], words: str
) -> None:
    fitted = run.ensemble()
    promise = ReviewPromise(risk=0.01, confidence=0.95, patients=700, errors=2, p_value=0.03, status=status)
    changed = {"version": 2, "promise": promise, "review": Review(threshold=0.9, risk=0.01)}
    write_metadata(tmp_path / "ensemble.json", fitted.model_copy(update=changed))
    artefacts, facts = read_manifest(repository).artefacts, CardFacts(fitted=fitted)
    text = markdown_from_card(card_from_repository(tmp_path, facts, artefacts, ()))
    assert "**Review risk**: at most 1.00% for new patients like those of the certification split" in text
    assert words in text
    # Export certified another threshold than that of the fit.
    assert "The export serves another vote or review rule than that of the fit" in text
    assert "needs review with a confidence below 0.9000, or more than one class in the prediction set." in text
    refused = CardFacts(fitted=fitted, promise_line="review risk: no promise of 1.00%: 12 patients are missing")
    text = markdown_from_card(card_from_repository(repository, refused, artefacts, ()))
    assert "**Review risk**: no promise of 1.00%: 12 patients are missing." in text
    assert "The export serves another" not in text


def test_a_promise_on_the_operating_point_is_stated_with_it(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path
) -> None:
    ensemble = decided[0].ensemble()
    decision = DecisionPromise(criterion="sensitivity", value=0.9, patients=80, errors=3, p_value=0.04)
    values = {"risk": 0.05, "confidence": 0.95, "patients": 90, "errors": 1, "p_value": 0.01, "status": "certified"}
    promise = ReviewPromise.model_validate({**values, "decision": decision})
    write_metadata(tmp_path / "ensemble.json", ensemble.with_promise(promise))
    text = markdown_from_card(card_from_repository(tmp_path, CardFacts(fitted=ensemble), graphs_of(ensemble), ()))
    assert "at 95% confidence. This is certified, together with the review risk." in text
    assert "Together with it, sensitivity of at least 90.00%: 3 errors in 80 patients." in text


def test_a_card_states_promises_by_class_and_refusals(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path
) -> None:
    ensemble = decided[0].ensemble()
    artefacts = graphs_of(ensemble)
    values = {"risk": 0.05, "confidence": 0.95, "patients": 90, "errors": 1, "p_value": 0.01}
    by_class = [
        {"name": name, "patients": 60, "errors": number, "p_value": 0.03} for number, name in enumerate(("CE", "LAA"))
    ]
    promise = ReviewPromise.model_validate({**values, "by_class": by_class})
    write_metadata(tmp_path / "ensemble.json", ensemble.with_promise(promise))
    text = markdown_from_card(card_from_repository(tmp_path, CardFacts(fitted=ensemble), artefacts, ()))
    assert "The same holds for the patients of each class: 0 errors in 60 of CE, 1 errors in 60 of LAA." in text
    figures = {"patients": 200, "errors": 4, "p_value": 0.31, "limit": 0.9}
    refused = RefusedPromise.model_validate({"what": "NPV", "target": 0.95, "confidence": 0.95, **figures})
    write_metadata(tmp_path / "ensemble.json", ensemble)
    facts = CardFacts(fitted=ensemble, refused_promise=refused)
    text = markdown_from_card(card_from_repository(tmp_path, facts, artefacts, ()))
    assert (
        "**Refused**: the fit, with PyTorch's predictions: NPV of 95.00% with 95% confidence; the first configuration, "
        "without review from a confidence of 0.9000 on, failed with 4 errors in 200 patients, p = 0.31, where at most "
        "0.05 passes."
    ) in text
    few = refused.model_copy(update={"limit": None, "errors": None, "p_value": None})
    text = markdown_from_card(
        card_from_repository(tmp_path, CardFacts(fitted=ensemble, refused_promise=few), artefacts, ())
    )
    assert "no review limit could be tested for the NPV: 200 patients at most." in text


@pytest.mark.slow
def test_the_card_of_a_site_names_the_figures_of_its_calibration(
    decided: tuple[Run, FitReport, Evaluation], tmp_path: Path
) -> None:
    run = Run(shutil.copytree(decided[0].path, tmp_path / "run"))
    site = write_site(tmp_path / "north", ce=60, laa=30)
    report = calibrate_run(run.path, CalibrateSettings(on=str(site), name="north", draws=100))
    facts = facts_from_run(run, site="north")
    assert facts.calibration is not None
    assert facts.calibration.changes == report.changes
    assert not any("Figures at the site" in line for line in facts.missing)
    text = markdown_from_card(card_from_repository(run.site_folder("north"), facts, graphs_of(report.ensemble), ()))
    assert "### Images of the site north" in text
    for figure in (report.changes["nll"].before, report.changes["ece"].after, report.changes["accuracy"].difference):
        assert figure_text(figure) in text
    assert report.decisions is not None
    assert percent_text(report.decisions["after"].sensitivity) in text
    assert f"| needs review | {report.reviewed['before']:.1%} | {report.reviewed['after']:.1%} |" in text
    assert "review risk: no promise; 90 patients" in text
    (run.site_folder("north") / "calibration.json").unlink()
    facts = facts_from_run(run, site="north")
    assert facts.calibration is None
    assert "Figures at the site: run plurum calibrate RUN --on SITE.csv --name north" in facts.missing[-1]


def graphs_of(ensemble: Ensemble) -> list[PublishedGraph]:
    """Return a manifest's entries for members that were not exported."""
    about = {"sha256": "0" * 64, "size_bytes": 1, "precision": "fp32", "backend": "onnxruntime", "reason": ""}
    return [
        PublishedGraph.model_validate(
            {**about, "model": one.name, "file": f"{one.name}/1/model.onnx", "latency_ms": {}}
        )
        for one in ensemble.members
    ]


def test_a_card_says_what_was_chosen_out_of_fold(run: Run) -> None:
    facts = facts_from_run(run)
    assert facts.folds is None
    card = card_from_repository(run.path, replace(facts, folds=3), graphs_of(run.ensemble()), ())
    text = markdown_from_card(card)
    assert re.search(r"\| train \| .* weights of the members; epoch, members and vote out of fold \|", text)
    assert re.search(r"\| validation \| .* temperature, prediction sets, operating point, review and outliers \|", text)
    assert "Training images are divided into 3 folds." in text


def test_a_card_follows_the_run_and_nothing_else_is_exported_again(
    fresh_run: Run, repository: Path, tmp_path: Path, plurum: CommandLine
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    graphs = {path: path.stat().st_mtime_ns for path in copy.rglob("*.onnx")}
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    words = ("export", fresh_run.path, "--out", copy, "--max-batch-size", 8, "--form", "chain")
    assert "nothing to do" in plurum.said(*words)
    assert {path: path.read_bytes() for path in before} == before
    (fresh_run.path / "intended_use.json").write_text(json.dumps(USE))
    assert "nothing to do" in plurum.said(*words)
    assert card_of(copy).use.contact == "a@b.example"
    assert {path: path.stat().st_mtime_ns for path in graphs} == graphs
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {*CARD_FILES, "export.json"}
    assert check_exported(copy)
    assert list(read_manifest(copy).files or ()) == sorted(read_manifest(repository).files or ())


def test_a_changed_card_is_noticed_and_a_repository_without_one_is_valid(
    run: Run, repository: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    with (copy / "model_card.md").open("a") as file:
        file.write("It is perfect.\n")
    with pytest.raises(RepositoryError, match=r"model_card\.md is not the file that was exported"):
        check_exported(copy)
    manifest = read_manifest(copy)
    files = {name: sha256 for name, sha256 in (manifest.files or {}).items() if name not in CARD_FILES}
    write_metadata(copy / "export.json", manifest.model_copy(update={"files": files}))
    for name in CARD_FILES:
        (copy / name).unlink()
    assert check_exported(copy)
    assert repository_from_run(run, copy, SETTINGS).unchanged
    assert check_exported(copy)
    assert markdown_of(copy) == markdown_of(repository)
