"""Operating points as the fit chooses them, and as the command states them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from plurum.errors import MetadataError
from plurum.run import Run
from plurum.spec import Ensemble, read_ensemble
from plurum.training import FitReport, FitSettings, fit_report
from plurum.training.inference.predictions import decide_splits
from plurum.voting import Verdict, decide_groups
from tests.cli.command_line import CommandLine
from tests.sample_runs.decided_run import build_decided_run

# One that decides otherwise than the most probable class.
SETTINGS = FitSettings(positive="CE", sensitivity=0.97, risk=0.1, select="all", draws=100)
Fitted = Literal["validation", "test"]


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_decided_run(tmp_path_factory.mktemp("decided") / "run")


@pytest.fixture(scope="module")
def fitted(unfitted: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FitReport]:
    run = Run(shutil.copytree(unfitted.path, tmp_path_factory.mktemp("fitted") / "run"))
    return run, fit_report(run.path, SETTINGS)


def verdict_on(run: Run, ensemble: Ensemble, split: Fitted) -> Verdict:
    return decide_splits(run, ensemble, (split,))[split]


def test_a_fit_states_the_point_and_its_figures(fitted: tuple[Run, FitReport]) -> None:
    """Compute the figures again, from the members' own predictions."""
    run, report = fitted
    ensemble = read_ensemble(run.ensemble_file)
    assert ensemble == report.ensemble
    point = ensemble.operating_point
    assert point is not None
    assert (ensemble.version, point.positive, point.criterion, point.value) == (2, "CE", "sensitivity", 0.97)
    assert report.decisions is not None
    table = run.table()
    for split, found in report.decisions.items():
        rows = table.rows(split)
        verdict = verdict_on(run, ensemble, split)
        is_ce, said = table.labels[rows] == 0, verdict.label == 0
        np.testing.assert_array_equal(said, verdict.probabilities[:, 0] >= (point.threshold or 0))
        assert found.images is not None
        assert found.unreviewed is not None
        assert found.images.sensitivity.value == pytest.approx(said[is_ce].mean())
        assert found.images.specificity.value == pytest.approx(1 - said[~is_ce].mean())
        assert found.images.ppv.value == pytest.approx(is_ce[said].mean())
        kept = ~verdict.review
        assert found.unreviewed.number == kept.sum()
        assert found.unreviewed.npv.value == pytest.approx((~is_ce)[kept & ~said].mean())
        assert report.ensemble.scores[split].accuracy == pytest.approx((said == is_ce).mean())
        assert found.patients is not None
        pooled = verdict.probabilities.reshape(-1, 2, 2).mean(axis=1)
        by_patient = decide_groups("mean", pooled, ensemble.rule.point) == 0
        assert found.patients.sensitivity.value == pytest.approx(by_patient[is_ce[::2]].mean())
    assert report.decisions["validation"].images is not None
    assert (report.decisions["validation"].images.sensitivity.value or 0) > 0.97


def test_the_baseline_is_of_decisions(fitted: tuple[Run, FitReport]) -> None:
    run, report = fitted
    ensemble, baseline = report.ensemble, report.ensemble.baseline
    verdict = verdict_on(run, ensemble, "validation")
    confidence = verdict.probabilities[np.arange(len(verdict.label)), verdict.label]
    assert baseline is not None
    assert baseline.class_shares[0] == pytest.approx((verdict.label == 0).mean())
    assert sum(baseline.confidence_shares[:5]) == pytest.approx((confidence <= 0.5).mean())
    assert sum(baseline.confidence_shares[:5]) > 0


def test_the_command_chooses_a_point_by_cost_and_prints_it(unfitted: Run, plurum: CommandLine, tmp_path: Path) -> None:
    run = Run(shutil.copytree(unfitted.path, tmp_path / "run"))
    costs = tmp_path / "costs.csv"
    costs.write_text("true,decided,cost\nCE,LAA,9\nLAA,CE,1\n,review,0.5\n")
    printed = plurum.said("fit", run.path, "--positive", "CE", "--costs", costs, "--draws", 100)
    assert "operating point: CE from a probability of 0.1000 on, where both decisions cost the same" in printed
    assert f"review: at a probability of CE from {0.5 / 9:.4f} to 0.5000: " in printed
    assert "all test images (200): sensitivity " in printed
    assert "test: a decision costs 0." in printed
    ensemble = run.ensemble()
    assert ensemble.operating_point is not None
    assert np.array_equal(ensemble.operating_point.costs or (), [[0, 9], [1, 0]])
    assert ensemble.review.risk is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--positive", "ce", "--sensitivity", "0.95"), "--positive: unknown class 'ce'; available: CE, LAA."),
        (("--positive", "CE", "--sensitivity", "1.5"), "--sensitivity: expected a number less than 1, got 1.5"),
        (("--positive", "CE", "--sensitivity", "nan"), "--sensitivity: expected a number less than 1, got nan"),
        (("--positive", "CE", "--sensitivity", "0.9999"), "needs at least 29956 patients, got "),
        (("--positive", "CE", "--costs", "nowhere.csv"), "--costs: nowhere.csv: can't be read: No such file"),
        (
            ("--positive", "CE", "--costs", "one.csv"),
            "--costs: one.csv: expected a cost of deciding 'CE' for 'LAA', got",
        ),
        (("--costs", "all.csv"), "--costs: expected --positive with it, one of CE, LAA, got none. Add it."),
        (("--positive", "CE", "--costs", "all.csv", "--risk", "0.1"), "--risk: can't be combined with the cost of a"),
        (("--audit-rate", "0"), "--audit-rate: expected a number greater than 0, got 0.0"),
    ],
)
def test_bad_use_gets_one_line(
    unfitted: Run,
    plurum: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("true,decided,cost\nCE,LAA,9\n")
    Path("all.csv").write_text("true,decided,cost\nCE,LAA,9\nLAA,CE,1\n,review,0.5\n")
    assert message in plurum.refused("fit", unfitted.path, *words)
    assert not unfitted.ensemble_file.exists()


def test_an_older_reader_refuses_a_point(fitted: tuple[Run, FitReport], tmp_path: Path) -> None:
    """A reader of version 1 would decide for the most probable class."""
    content = json.loads(fitted[0].ensemble_file.read_text())
    (tmp_path / "ensemble.json").write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(MetadataError, match="version: expected 2 for these keys, got 1"):
        read_ensemble(tmp_path / "ensemble.json")
