"""`plurum fit`: its table and JSON; wrong use gives one line and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from plurum.cli.main import run as command_line
from plurum.run import Run
from plurum.spec import read_ensemble
from plurum.training import FitReport


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """Copy of a fitted run, for this test alone."""
    shutil.copytree(run.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def plurum(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["plurum", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        command_line()
    return caught.value.code if isinstance(caught.value.code, int) else 0


def test_it_prints_members_ensemble_and_what_was_fitted(
    copy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copy.ensemble_file.read_bytes()
    assert plurum(monkeypatch, "fit", copy.path) == 0
    printed = capsys.readouterr().out
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


def test_what_was_found_out_is_left_in_the_report(
    copy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = (f"--prior={name}={0.19 if index < 5 else 0.01}" for index, name in enumerate(copy.data().classes))
    assert plurum(monkeypatch, "fit", copy.path, "--select", "greedy", *shares, "--draws", 100) == 0
    printed = capsys.readouterr().out
    report = FitReport.model_validate_json((copy.report_folder / "fit.json").read_text())
    assert report.ensemble == read_ensemble(copy.ensemble_file)
    assert report.select == "greedy"
    assert "prior: corrected for class fractions zero 0.190 (here " in printed
    for name in ("fit_members.png", "fit_review.png"):
        with Image.open(copy.report_folder / name) as picture:
            assert min(picture.size) > 150
    assert "on test images the ensemble" in printed or "is the only member kept, as no other member" in printed


def test_json_is_the_whole_report(
    copy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plurum(monkeypatch, "fit", copy.path, "--mode", "hard", "--alpha", 0.3, "--risk", 0.2, "--json") == 0
    report = FitReport.model_validate_json(capsys.readouterr().out)
    ensemble = read_ensemble(copy.ensemble_file)
    assert report.ensemble == ensemble
    assert ensemble.voting.mode == "hard"
    assert ensemble.conformal is not None
    assert (ensemble.conformal.alpha, ensemble.review.risk) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--mode", "loud"), "--mode: expected 'soft', 'hard' or 'stack', got 'loud'"),
        (("--alpha", 0), "--alpha: expected a number greater than 0, got 0.0"),
        (("--alpha", 1), "--alpha: expected a number less than 1, got 1.0"),
        (("--risk", 2), "--risk: expected a number less than or equal to 1, got 2.0"),
        (("--risk", "nan"), "--risk: expected a number less than or equal to 1, got nan"),
        (("--select", "some"), "--select: expected 'backward', 'greedy' or 'all', got 'some'"),
        (("--select", "greedy", "--mode", "hard"), "--select: greedy selects the weights of a soft vote"),
        (("--l2", 0), "--l2: expected a number greater than 0, got 0.0"),
        (("--patient-rule", "median"), "--patient-rule: expected 'mean', 'max' or 'majority', got 'median'"),
        (("--prior", "CE"), "--prior: expected CLASS=SHARE once per class, such as CE=0.7, got ['CE']"),
        (("--prior", "CE=0.5", "--prior", "CE=0.5"), "--prior: expected CLASS=SHARE once per class, "),
        (("--prior", "CE=most"), "--prior: expected a valid number, unable to parse string as a number, got 'most'"),
        (("--prior", "CE=1.5"), "--prior: expected a number less than 1, got '1.5'"),
        (("--prior", "CE=0.5", "--prior", "LAA=0.4"), "--prior: expected a sum of 1, got 0.9"),
        (("--prior", "CE=0.5", "--prior-from", "ward"), "--prior: can't be combined with --prior-from"),
        (("--prior-from", "ward", "--mode", "hard"), "--prior: corrects probabilities, and --mode hard"),
    ],
)
def test_options_that_can_not_be_used_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    line: str,
) -> None:
    assert plurum(monkeypatch, "fit", tmp_path, *options) == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_what_is_no_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plurum(monkeypatch, "fit", tmp_path) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"plurum: {tmp_path} is not a run: it has no run.json. Create a run: plurum train ")
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
