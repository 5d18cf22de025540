"""From finished members to an ensemble whose every number can be recomputed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from plurum.errors import ContractError
from plurum.files import sha256_of
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.spec import read_ensemble
from plurum.training import FitReport, FitSettings, fit_report, fit_run
from plurum.training.calibration import conformal_quantiles, fitted_temperature, review_threshold
from plurum.training.scoring import logits_of, scores_of
from plurum.voting import Verdict, decide, soft_vote, softmax

Floats = npt.NDArray[np.float64]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A finished run of this test's own, not fitted yet."""
    shutil.copytree(trained.path, tmp_path / "two members!")
    return Run(tmp_path / "two members!")


def answers_of(run: Run, split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Members' probabilities `[images, members, classes]` and labels, from the files alone."""
    table = run.table()
    rows = np.flatnonzero(np.array(table.splits) == split)
    answers = [
        softmax(logits_of(model_from_checkpoint(member, run.checkpoint(member)), run.pixels(), rows, member.image))
        for member in run.members()
    ]
    return np.stack(answers, axis=1), table.labels[rows]


def confidence_of(verdict: Verdict) -> Floats:
    return np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=1)[:, 0]


def check_numbers(run: Run, report: FitReport) -> None:
    """Recompute what the report and the ensemble say."""
    ensemble = report.ensemble
    for split in ("validation", "test"):
        answers, labels = answers_of(run, split)
        verdict = decide(answers, ensemble.rule)
        scores = scores_of(verdict.probabilities, labels, verdict.label)
        assert ensemble.scores[split].accuracy == scores.accuracy
        assert ensemble.scores[split].nll == pytest.approx(scores.nll)
        assert report.reviewed[split] == pytest.approx(verdict.review.mean())
        assert report.covered[split] == pytest.approx(verdict.prediction_set[np.arange(len(labels)), labels].mean())
        for index, member in enumerate(ensemble.members):
            alone = report.members[member.name].scores[split]
            assert alone.nll == pytest.approx(scores_of(answers[:, index], labels).nll)


def test_a_soft_vote_is_fitted_on_validation_images(run: Run) -> None:
    settings = FitSettings(alpha=0.2, risk=0.05)
    report = fit_report(run.path, settings)
    ensemble = report.ensemble
    assert read_ensemble(run.ensemble_file) == ensemble
    assert ensemble.name == "two-members"
    assert ensemble.data.images == {"train": 160, "validation": 80, "test": 80}
    assert ensemble.data.fingerprint == run.data().fingerprint
    answers, labels = answers_of(run, "validation")
    if report.nll_saved[0] > 0:
        assert ensemble.voting.weights == tuple((report.weights_tried or {}).values())
    else:
        assert ensemble.voting.weights == (0.5, 0.5)
    assert ensemble.voting.temperature == pytest.approx(
        fitted_temperature(soft_vote(answers, ensemble.voting.weights), labels)
    )
    verdict = decide(answers, ensemble.rule)
    assert ensemble.conformal is not None
    np.testing.assert_allclose(
        ensemble.conformal.quantiles, conformal_quantiles(verdict.probabilities, labels, np.arange(80), 0.2)
    )
    wrong = verdict.label != labels
    threshold = ensemble.review.threshold
    assert threshold == pytest.approx(review_threshold(confidence_of(verdict), wrong, 0.05))
    assert wrong[confidence_of(verdict) >= threshold].mean() <= 0.05
    check_numbers(run, report)


def test_a_hard_vote_has_equal_weights_and_no_temperature(run: Run) -> None:
    report = fit_report(run.path, FitSettings(mode="hard"))
    voting = report.ensemble.voting
    assert (voting.mode, voting.weights, voting.temperature) == ("hard", (0.5, 0.5), 1.0)
    check_numbers(run, report)


def test_a_second_fit_takes_the_first_ones_place(run: Run) -> None:
    first = fit_run(run.path)
    assert fit_run(run.path, FitSettings(mode="hard")) != first
    assert read_ensemble(run.ensemble_file).voting.mode == "hard"
    assert fit_run(run.path) == first
    assert {path.name for path in run.path.iterdir()} == {"run.json", "data", "members", "ensemble.json"}


def test_a_useless_member_is_left_out_and_an_equal_one_is_not(run: Run) -> None:
    """The one is made by permuting the classes that a member answers, the other by copying it."""
    good, other = run.members()
    folder = run.member_folder(other.name)
    shutil.rmtree(folder)
    shutil.copytree(run.member_folder(good.name), folder)
    contract = json.loads((folder / "member.json").read_text())
    (folder / "member.json").write_text(json.dumps({**contract, "name": other.name}))
    same = fit_report(run.path, FitSettings())
    assert same.ensemble.voting.weights == (0.5, 0.5)
    assert same.outcome == "no different"
    assert (same.differences["accuracy"].low, same.differences["accuracy"].high) == (0, 0)

    weights = load_file(folder / "checkpoint.safetensors")

    def become(head_bias: torch.Tensor, head_weight: torch.Tensor) -> None:
        path = folder / "checkpoint.safetensors"
        save_file({**weights, "head.fc.bias": head_bias, "head.fc.weight": head_weight}, path)
        changed = {**contract, "name": other.name, "sha256": sha256_of(path)}
        (folder / "member.json").write_text(json.dumps(changed))

    # Not every change is as good as none: what is asked is that one which is leaves the weights equal.
    for seed in range(10):
        noise = torch.randn(weights["head.fc.weight"].shape, generator=torch.Generator().manual_seed(seed))
        become(weights["head.fc.bias"], weights["head.fc.weight"] + 0.02 * noise)
        alike = fit_report(run.path, FitSettings())
        if alike.nll_saved[0] < 0 < alike.nll_saved[1]:
            break
    assert alike.nll_saved[0] < 0 < alike.nll_saved[1]
    assert set((alike.weights_tried or {}).values()) != {0.5}
    assert alike.ensemble.voting.weights == (0.5, 0.5)

    become(weights["head.fc.bias"].roll(1, 0), weights["head.fc.weight"].roll(1, 0))
    report = fit_report(run.path, FitSettings())
    assert report.left_out == (other.name,)
    assert [member.name for member in report.ensemble.members] == [good.name]
    assert report.best_single == good.name
    kept = fit_report(run.path, FitSettings(select="all"))
    assert kept.nll_saved[0] > 0
    assert kept.ensemble.voting.weights[0] > 0.9


def test_what_is_no_finished_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"is no run: it has no run\.json"):
        fit_run(tmp_path)
    shutil.rmtree(run.path / "members")
    with pytest.raises(ContractError, match="has no finished member"):
        fit_run(run.path)


def test_a_member_of_other_classes_is_refused(run: Run) -> None:
    path = run.member_folder("test_resnet") / "member.json"
    contract = json.loads(path.read_text())
    path.write_text(json.dumps({**contract, "classes": ["a", "b", "c", "d"]}))
    with pytest.raises(ContractError, match="member 'test_resnet' has other classes"):
        fit_run(run.path)
    assert not run.ensemble_file.exists()


def test_a_checkpoint_that_was_changed_is_refused(run: Run) -> None:
    path = run.member_folder("test_resnet") / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ContractError, match=r"is not the file that member\.json names"):
        fit_run(run.path)
