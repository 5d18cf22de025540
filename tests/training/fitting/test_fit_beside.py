"""Comparison of the ensemble with its best member and with members left out, by fit and by evaluate."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from plurum.run import Run
from plurum.training import EvaluationSettings, FitSettings, evaluate_run, fit_report
from plurum.training.statistics.calibration import tempered_losses
from plurum.training.statistics.scoring import compute_scores
from plurum.voting import temper, with_prior
from tests.training.fitting.member_answers import answers_of


@pytest.fixture
def run(unfitted: Run) -> Run:
    """Return a copy of the finished run for one test."""
    return unfitted


def test_the_best_member_is_chosen_by_validation_images(run: Run) -> None:
    """Relabel test images such that the other member predicts all of them correctly."""
    predictions, labels = answers_of(run, "validation")
    losses = [tempered_losses(predictions[:, index], labels).mean() for index in range(2)]
    best, other = np.argsort(losses)
    right = answers_of(run, "test")[0][:, other].argmax(axis=1)
    file = run.data_folder / "items.csv"
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    for row, label in zip([row for row in rows if row["split"] == "test"], right, strict=True):
        row["label"] = run.data().classes[label]
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report = fit_report(run.path, FitSettings())
    names = [member.name for member in run.members()]
    assert report.members[names[other]].scores["test"].accuracy == 1
    assert report.best_single == names[best]
    assert evaluate_run(run.path, EvaluationSettings()).best_single == names[best]


def test_members_that_are_not_finished_are_named(run: Run) -> None:
    assert fit_report(run.path, FitSettings()).unfinished == ()
    shutil.rmtree(run.member_folder("test_resnet"))
    report = fit_report(run.path, FitSettings())
    assert report.unfinished == ("test_resnet",)
    # A run of another program does not list its planned members.
    run.settings_file.write_text("{}")
    assert fit_report(run.path, FitSettings()).unfinished == ()


def test_the_best_member_is_corrected_for_the_prior_where_the_vote_is(run: Run) -> None:
    """Both commands compare the same predictions; fit weights images by the class frequencies in service."""
    report = fit_report(run.path, FitSettings(prior={"0": 0.85, "1": 0.05, "2": 0.05, "3": 0.05}))
    judged = evaluate_run(run.path, EvaluationSettings())
    predictions, labels = answers_of(run, "test")
    best = [member.name for member in run.members()].index(report.best_single)
    assert judged.best_single == report.best_single
    tempered = temper(predictions[:, best], judged.best_single_temperature)
    corrected = with_prior(tempered, report.ensemble.voting.prior_ratio)
    assert judged.judged[1].metrics["nll"].value == pytest.approx(compute_scores(corrected, labels).nll)
    assert judged.judged[1].metrics["nll"].value != pytest.approx(compute_scores(tempered, labels).nll)


def test_a_judgement_names_those_that_were_left_out(spoilt: Run) -> None:
    fit_report(spoilt.path, FitSettings())
    (note,) = [note for note in evaluate_run(spoilt.path, EvaluationSettings()).notes if "Not in the vote" in note]
    scores = next(member for member in spoilt.members() if member.name == "test_efficientnet").validation
    assert scores is not None
    assert note == (
        f"Not in the vote, so not evaluated: test_efficientnet (on validation images: accuracy {scores.accuracy:.4f}, "
        f"NLL {scores.nll:.4f})."
    )
