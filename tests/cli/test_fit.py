"""`plurum fit`: its table and JSON; wrong use gives one line and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from plurum.run import Run
from plurum.spec import read_ensemble
from plurum.training import FitReport
from tests.cli.command_line import CommandLine


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """Copy of a fitted run, for this test alone."""
    shutil.copytree(run.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def test_the_output_has_members_ensemble_and_fitted_values(copy: Run, plurum: CommandLine) -> None:
    before = copy.ensemble_file.read_bytes()
    printed = plurum.said("fit", copy.path)
    ensemble = copy.ensemble()
    assert copy.ensemble_file.read_bytes() != before
    for member, weight in zip(ensemble.members, ensemble.voting.weights, strict=True):
        assert any(member.name in line and f"{weight:.3f}" in line for line in printed.splitlines())
    scores = ensemble.scores["test"]
    assert any(
        line.split()[0] == "ensemble" and f"{scores.accuracy:.4f}" in line and f"{scores.nll:.4f}" in line
        for line in printed.splitlines()
        if line.split()
    )
    assert f"temperature of the vote: {ensemble.voting.temperature:.3f}" in printed
    assert f"review: below a confidence of {ensemble.review.threshold:.4f}" in printed
    assert f"next: plurum export {copy.path}" in printed


def test_the_report_folder_has_the_fit_and_its_plots(copy: Run, plurum: CommandLine) -> None:
    shares = (f"--prior={name}={0.19 if index < 5 else 0.01}" for index, name in enumerate(copy.data().classes))
    printed = plurum.said("fit", copy.path, "--select", "greedy", *shares, "--draws", 100)
    report = FitReport.model_validate_json((copy.report_folder / "fit.json").read_text())
    assert report.ensemble == read_ensemble(copy.ensemble_file)
    assert report.select == "greedy"
    assert "prior: corrected for class fractions zero 0.190 (here " in printed
    for name in ("fit_members.png", "fit_review.png"):
        with Image.open(copy.report_folder / name) as picture:
            assert min(picture.size) > 150
    assert "on test images the ensemble" in printed or "is the only member kept, as no other member" in printed


def test_the_outlier_test_is_fitted_unless_it_is_refused(copy: Run, plurum: CommandLine) -> None:
    printed = plurum.said("fit", copy.path, "--outlier-alpha", 0.01, "--draws", 100)
    assert "of test images have a p-value below 0.01 (from 40 validation patients)" in printed
    assert "--outlier-alpha: expected at least 0.0244 with 40 validation patients, got 0.01" in printed
    assert copy.ensemble().outliers is not None
    assert "outliers: " not in plurum.said("fit", copy.path, "--no-outliers", "--draws", 100)
    assert copy.ensemble().outliers is None


def test_json_has_the_full_report(copy: Run, plurum: CommandLine) -> None:
    printed = plurum.said("fit", copy.path, "--mode", "hard", "--alpha", 0.3, "--risk", 0.2, "--json")
    report = FitReport.model_validate_json(printed)
    ensemble = read_ensemble(copy.ensemble_file)
    assert report.ensemble == ensemble
    assert ensemble.voting.mode == "hard"
    assert ensemble.conformal is not None
    assert (ensemble.conformal.alpha, ensemble.review.risk) == (0.3, 0.2)


def test_times_of_a_repository_need_a_cascade_and_a_repository(
    copy: Run, repository: Path, plurum: CommandLine
) -> None:
    refused = plurum.refused("fit", copy.path, "--cascade-costs", repository)
    assert "--cascade-costs: expected --cascade with it, got none" in refused
    refused = plurum.refused("fit", copy.path, "--cascade", "--cascade-costs", copy.path / "absent")
    assert "absent: expected a model repository folder" in refused
