"""Report files: CSV, JSON and the HTML page."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.errors import OutputError
from plurum.sentences import figure_text, percent_text
from plurum.settings.training import EvaluationSettings
from plurum.spec import Review
from plurum.training.evaluation.evaluate import EvaluationSubject, SplitPredictions, evaluate_predictions
from plurum.training.evaluation.plots import plots_from_evaluation
from plurum.training.evaluation.report import REPORT_FILES, csv_from_evaluation, html_from_evaluation, write_report
from plurum.training.statistics.results import Estimate, Evaluation
from plurum.training.statistics.wording import difference_text, significant_change, verdict_lines
from plurum.voting import VotingRule, decide, softmax
from tests.training.evaluation.html_page import Page

# Names with markup, a plot formula and CSV separators, which must be escaped.
CLASSES = ("<script>alert(1)</script>", "$x_1$ & more", 'a "quoted", long name that no axis has room for')
PICTURES = {"comparison", "confusion", "roc", "precision_recall", "reliability", "risk_coverage"}
PICTURES |= {"prediction_sets", "diversity", "drift"}


def judged(members: int = 2, classes: tuple[str, ...] = CLASSES, *, patients: bool = True) -> Evaluation:
    rng = np.random.default_rng(0)
    names = tuple(f"member_{index}" for index in range(members))
    rule = VotingRule((1 / members,) * members, quantiles=(0.9,) * len(classes), review_threshold=0.5)
    subject = EvaluationSubject("clots", classes, names, "PyTorch", alpha=0.1, review=Review(threshold=0.5, risk=0.05))
    labels = np.repeat(rng.integers(0, len(classes), 40), 4)
    logits = rng.normal(0, 1, (160, members, len(classes)))
    logits[np.arange(160), :, labels] += 1.5
    asked = SplitPredictions(
        decide(softmax(logits), rule), labels, [f"p{index // 4}" if patients else "" for index in range(160)]
    )
    return evaluate_predictions(subject, asked, asked, EvaluationSettings(draws=100))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return judged()


def test_the_page_contains_everything_and_loads_nothing(evaluation: Evaluation) -> None:
    pictures = plots_from_evaluation(evaluation)
    text = html_from_evaluation(evaluation, pictures)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.addresses) == len(PICTURES)
    shown = {base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in page.addresses}
    assert shown == set(pictures.values())
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    for name in CLASSES:
        assert name in page.text
    for line in verdict_lines(evaluation):
        assert line in page.text
    assert figure_text(evaluation.ensemble.metrics["aurc"]) in page.text
    assert "<h2>Patients</h2>" in text


def test_pictures_are_whole_and_none_is_empty(evaluation: Evaluation) -> None:
    pictures = plots_from_evaluation(evaluation)
    assert set(pictures) == PICTURES
    for name, picture in pictures.items():
        image = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert image.shape[0] > 100, name
        assert image.shape[1] > 300, name
        assert (image < 250).mean() > 0.01, name
    assert plots_from_evaluation(evaluation) == pictures


def test_plots_leave_nothing_behind(evaluation: Evaluation) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots_from_evaluation(evaluation)
    assert dict(mpl.rcParams) == before
    import sys

    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_csv_holds_every_figure(evaluation: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_from_evaluation(evaluation))))
    assert set(rows[0]) == {"name", "class", "metric", "value", "low", "high"}
    found = {(row["name"], row["class"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    nll = evaluation.judged[2].metrics["nll"]
    row = found["member_0", "", "nll"]
    assert [float(row[key]) for key in ("value", "low", "high")] == pytest.approx(
        [nll.value, nll.low, nll.high], rel=1e-5
    )
    recall = evaluation.ensemble.per_class[CLASSES[2]]["recall"]
    assert float(found["ensemble", CLASSES[2], "recall"]["value"]) == pytest.approx(recall.value, rel=1e-5)
    difference = evaluation.differences["accuracy"].value
    assert float(found["ensemble - best single", "", "accuracy"]["value"]) == pytest.approx(difference, abs=1e-6)
    level = evaluation.patient_level
    assert level is not None
    patient = level.by_rule["best single"]["max"].accuracy.value
    assert float(found["best single", "", "patient_accuracy_max"]["value"]) == pytest.approx(patient)
    assert ("best single", "", "patient_nll_majority") not in found


def test_a_report_is_written_and_written_again(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    page = write_report(evaluation, folder)
    assert page == folder / "report.html"
    assert {file.name for file in folder.iterdir()} == {*REPORT_FILES, *(f"{name}.png" for name in PICTURES)}
    assert Evaluation.model_validate_json((folder / "metrics.json").read_text(encoding="utf-8")) == evaluation
    (folder / "notes.txt").write_text("mine")
    write_report(judged(members=1, patients=False), folder)
    # A single member has no pairs, so the old plot must be removed.
    assert not (folder / "diversity.png").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert "Diversity of the members" not in page.read_text(encoding="utf-8")
    assert "<h2>Patients</h2>" not in page.read_text(encoding="utf-8")


def test_a_file_in_the_way_is_named(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(OutputError, match="report is a file; name a folder"):
        write_report(evaluation, tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_many_classes_and_many_members_still_make_a_report(tmp_path: Path) -> None:
    many = judged(members=5, classes=tuple(f"class {index}" for index in range(40)))
    page = Page(write_report(many, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "class 39" in page.text


def test_undefined_figures_are_dashes() -> None:
    none = Estimate(value=None, low=None, high=None)
    assert (figure_text(none), figure_text(None), difference_text(none), percent_text(none)) == ("–", "–", "–", "none")
    assert figure_text(Estimate(value=0.5, low=None, high=None)) == "0.5000"
    assert figure_text(Estimate(value=0.5, low=0.25, high=0.75)) == "0.5000 (0.2500–0.7500)"
    assert difference_text(Estimate(value=-1e-9, low=-0.5, high=0.25)) == "+0.0000 (-0.5000 to +0.2500)"
    assert percent_text(Estimate(value=0.5, low=0.25, high=1)) == "50.0% (25.0%–100.0%)"


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [(0.1, 0.2, "better", "worse"), (-0.2, -0.1, "worse", "better"), (-0.1, 0.1, "", ""), (0.0, 0.1, "", "")],
)
def test_a_difference_counts_when_its_interval_excludes_0(low: float, high: float, higher: str, lower: str) -> None:
    figure = Estimate(value=(low + high) / 2, low=low, high=high)
    assert significant_change(figure, "higher") == higher
    assert significant_change(figure, "lower") == lower


def test_the_summary_compares_the_vote_with_its_best_member(evaluation: Evaluation) -> None:
    def said(accuracy: tuple[float, float], nll: tuple[float, float]) -> str:
        differences = dict(evaluation.differences)
        for name, (low, high) in (("accuracy", accuracy), ("nll", nll)):
            differences[name] = Estimate(value=(low + high) / 2, low=low, high=high)
        return verdict_lines(evaluation.model_copy(update={"differences": differences}))[1]

    assert said((0.1, 0.2), (-0.2, -0.1)).startswith("It is significantly better than its best single member, ")
    assert said((-0.2, -0.1), (0.1, 0.2)).startswith("It is significantly worse than its best single member, ")
    assert said((-0.2, 0.1), (-0.1, 0.2)).startswith("It is not significantly different from ")
    assert "significantly better in accuracy, +0.1500 (+0.1000 to +0.2000), and significantly worse in NLL" in said(
        (0.1, 0.2), (0.1, 0.2)
    )
    assert "no vote to evaluate" in verdict_lines(judged(members=1))[1]


def test_two_classes_have_a_decision_curve_and_no_repeated_means(tmp_path: Path) -> None:
    two = judged(classes=("<b>CE</b>", "LAA"))
    page = Page(write_report(two, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert (tmp_path / "decision_curve.png").is_file()
    assert [(one.positive, one.answers) for one in two.diagnoses] == [
        (name, answers) for name in ("<b>CE</b>", "LAA") for answers in ("all", "unreviewed")
    ]
    first, second = two.diagnoses[0], two.diagnoses[2]
    # The sensitivity of one class is the specificity of the other.
    assert first.figures["sensitivity"] == second.figures["specificity"]
    assert first.figures["sensitivity"].value == two.ensemble.per_class["<b>CE</b>"]["recall"].value
    assert "macro recall" not in page.text
    assert "macro recall" in Page(write_report(judged(), tmp_path).read_text(encoding="utf-8")).text
    assert not (tmp_path / "decision_curve.png").exists()
    rows = list(csv.DictReader(io.StringIO(csv_from_evaluation(two))))
    assert {("LAA", "decision_ppv"), ("LAA", "unreviewed_npv")} <= {(row["class"], row["metric"]) for row in rows}


def test_test_images_that_differ_from_validation_images_are_said_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rule = VotingRule((1.0,), quantiles=(0.9, 0.9), review_threshold=0.5)
    subject = EvaluationSubject("clots", ("CE", "LAA"), ("one",), "PyTorch", alpha=0.1, review=Review(threshold=0.5))
    parts = {}
    for name, separation in (("validation", 3.0), ("alike", 3.0), ("blurred", 1.0)):
        labels = rng.integers(0, 2, 200)
        logits = rng.normal(0, 1, (200, 1, 2))
        logits[np.arange(200), 0, labels] += separation
        patients = [f"{name} {image // 2}" for image in range(200)]
        parts[name] = SplitPredictions(decide(softmax(logits), rule), labels, patients)
    settings = EvaluationSettings(draws=100)
    alike = evaluate_predictions(subject, parts["alike"], parts["validation"], settings)
    assert alike.drift is not None
    assert not alike.drift.is_found
    assert (alike.drift.unit, alike.drift.units) == ("patients", (100, 100))
    assert not any("differ from the validation images" in note for note in alike.notes)
    blurred = evaluate_predictions(subject, parts["blurred"], parts["validation"], settings)
    (note,) = (note for note in blurred.notes if "differ from the validation images" in note)
    assert re.fullmatch(
        r"The test images differ from the validation images: confidence most, by 0\.\d\d \(p = 0\.0010\)\. "
        r"No promise of coverage or risk holds for them\.",
        note,
    )
    page = Page(write_report(blurred, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert note in page.text
    assert "Drift: the predictions differ from the reference" in page.text
    assert (tmp_path / "drift.png").is_file()
    rows = csv.DictReader(io.StringIO(csv_from_evaluation(blurred)))
    assert ("test - validation", "distance_confidence") in {(row["name"], row["metric"]) for row in rows}
    on_validation = settings.model_copy(update={"split": "validation"})
    itself = evaluate_predictions(subject, parts["validation"], parts["validation"], on_validation)
    assert itself.drift is None
    page = Page(write_report(itself, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "Difference from the validation images" not in page.text
    assert not (tmp_path / "drift.png").exists()


def test_groups_have_their_own_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rule = VotingRule((1.0,), quantiles=(0.9, 0.9), review_threshold=0.5)
    subject = EvaluationSubject(
        "clots", ("CE", "LAA"), ("one",), "PyTorch", alpha=0.1, review=Review(threshold=0.5), positive="CE"
    )
    labels = rng.integers(0, 2, 120)
    logits = rng.normal(0, 1, (120, 1, 2))
    # The second site is guessing, the third has few images, and two are unknown.
    logits[np.arange(120), 0, labels] += np.repeat([4.0, 0.0, 4.0], [50, 50, 20])
    sites = ["<b>north</b>"] * 50 + ["south"] * 50 + ["west"] * 18 + ["", "NA"]
    asked = SplitPredictions(decide(softmax(logits), rule), labels, [""] * 120, {"site": sites})
    found = evaluate_predictions(subject, asked, asked, EvaluationSettings(draws=100))
    (column,) = found.by_group
    assert [(one.name, one.is_judged) for one in column.groups] == [
        ("<b>north</b>", True),
        ("south", True),
        ("unknown", False),
        ("west", False),
    ]
    south = column.groups[1]
    assert column.worst["accuracy"] == "south"
    assert south.p_values["accuracy"] <= 0.05
    verdict = asked.verdict
    assert south.figures["accuracy"].value == pytest.approx((verdict.label == labels)[50:100].mean())
    assert south.figures["needs review"].value == pytest.approx(verdict.review[50:100].mean())
    positives = np.flatnonzero(labels[50:100] == 0) + 50
    assert south.figures["sensitivity"].value == pytest.approx((verdict.label[positives] == 0).mean())
    page = Page(write_report(found, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "The lowest accuracy is that of south" in page.text
    assert "Not judged, because of fewer than 20 patients: unknown, west." in page.text
    rows = csv.DictReader(io.StringIO(csv_from_evaluation(found)))
    assert ("ensemble, site south", "accuracy_without_review") in {(row["name"], row["metric"]) for row in rows}
