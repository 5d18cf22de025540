"""Members of folds: no image, equal image or patient of a member's fold is learnt by it, and the fit respects this."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from plurum.errors import MetadataError, OutputError, SettingsError
from plurum.export.repository.cards.facts import facts_from_run
from plurum.models import model_from_checkpoint
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run
from plurum.settings.members import AddSettings
from plurum.spec import Member, read_metadata, write_metadata
from plurum.training import FitSettings, TrainSettings, add_member, fit_report, train_run
from plurum.training.data.examples import Examples
from plurum.training.fitting.cross_validation import fold_models, spread_vote
from plurum.training.fitting.outliers import outlier_lines
from plurum.training.fitting.votes import ValidationPredictions, fit_vote
from plurum.training.inference.predictions import predict_out_of_fold
from plurum.training.learning.plan import RunSettings
from plurum.training.statistics.calibration import fit_temperature
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import soft_vote, softmax
from tests.sample_runs.build_once import build_once

FOLDS = 3
SETTINGS = TrainSettings(
    archs=("test_byobnet", "test_resnet"),
    folds=FOLDS,
    image_size=32,
    epochs=2,
    batch_size=16,
    learning_rate=5e-3,
    precision="fp32",
)
_COUNTS = {"train": 72, "val": 24, "calibration": 20, "test": 16}


def write_planted(folder: Path) -> Path:
    """Write a manifest of digits with patients of several images, and with copies of images of other patients."""
    folder.mkdir()
    digits = load_digits(n_class=2)
    rows, number = [], 0
    for split, count in _COUNTS.items():
        for index in range(count):
            # Every sixth image that is learnt is a copy of one of another patient, also across training and validation.
            copied = number - 12 if split in {"train", "val"} and number >= 12 and index % 6 == 0 else number
            Image.fromarray((digits.images[copied] * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
            rows.append((f"{number}.png", digits.target[copied], f"{split}-{index // 3}", split))
            number += 1
    path = folder / "images.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient", "split"), *rows])
    return path


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest with planted copies and patients, read-only."""
    return build_once(tmp_path_factory, "planted", write_planted) / "images.csv"


@pytest.fixture(scope="session")
def folded(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two models with a member per fold, read-only."""
    return Run(build_once(tmp_path_factory, "folded", lambda out: train_run(str(planted), SETTINGS, out)))


@pytest.fixture
def copy(folded: Run, tmp_path: Path) -> Run:
    """Return a copy of the run for one test."""
    return Run(shutil.copytree(folded.path, tmp_path / "copy"))


def predict(run: Run, member: Member, rows: Ints) -> Floats:
    model = model_from_checkpoint(member, run.checkpoint(member))
    return softmax(predict_logits(model, run.pixels(), rows, member.image))


def test_nothing_of_a_fold_is_learnt_by_its_member(folded: Run) -> None:
    table, pixels = folded.table(), folded.pixels()
    learnt = _COUNTS["train"] + _COUNTS["val"]
    assert [len(table.rows(split)) for split in ("train", "validation", "test")] == [learnt, 20, 16]
    pictures = [pixels[row].tobytes() for row in range(len(pixels))]
    assert len(set(pictures[:learnt])) < learnt
    seen = list[int]()
    for fold in range(1, FOLDS + 1):
        examples = Examples.of(folded, fold)
        for keys in (list(range(len(pixels))), pictures, list(table.patients)):
            assert not {keys[row] for row in examples.train} & {keys[row] for row in examples.validation}
        assert sorted([*examples.train, *examples.validation]) == list(range(learnt))
        seen.extend(examples.validation.tolist())
        for model in SETTINGS.archs:
            (member,) = (one for one in folded.members() if one.name == f"{model}-fold-{fold}")
            scores = compute_scores(predict(folded, member, examples.validation), table.labels[examples.validation])
            assert member.validation is not None
            assert member.validation.images == len(examples.validation)
            assert member.validation.nll == pytest.approx(scores.nll)
    assert sorted(seen) == list(range(learnt))
    assert {table.patients[row].split("-")[0] for row in table.rows("validation")} == {"calibration"}


def test_a_training_resumes_with_the_same_folds(copy: Run, planted: Path) -> None:
    before, folds = {member.name: member.sha256 for member in copy.members()}, copy.table().folds
    lost = "test_byobnet-fold-2"
    shutil.rmtree(copy.member_folder(lost))
    with pytest.raises(MetadataError, match=f"expected a member of each fold, got none of {lost}. Run the same"):
        fit_report(copy.path, FitSettings())
    again = train_run(str(planted), SETTINGS, copy.path)
    assert set(again.reused) == set(before) - {lost}
    assert {member.name: member.sha256 for member in copy.members()} == before
    np.testing.assert_array_equal(copy.table().folds, folds)
    with pytest.raises(OutputError, match="--folds: expected 3, got 4"):
        train_run(str(planted), SETTINGS.model_copy(update={"folds": 4}), copy.path)


def test_models_are_weighed_out_of_fold_and_the_served_vote_gets_the_temperature(copy: Run) -> None:
    report = fit_report(copy.path, FitSettings(select="greedy", no_outliers=True))
    table, members = copy.table(), {member.name: member for member in copy.members()}
    models = [{fold: members[f"{name}-fold-{fold}"] for fold in range(1, FOLDS + 1)} for name in SETTINGS.archs]
    rows = table.rows("train")
    assert table.folds is not None
    expected = np.empty((len(rows), 2, 2))
    for index, model in enumerate(models):
        for fold, member in model.items():
            chosen = np.flatnonzero(table.folds[rows] == fold)
            expected[chosen, index] = predict(copy, member, rows[chosen])
    found = predict_out_of_fold(copy, models)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    groups = np.unique([table.patients[row] for row in rows], return_inverse=True)[1]
    by_model = fit_vote(
        ValidationPredictions(found, table.labels[rows], groups, copy.data().classes), FitSettings(select="greedy")
    )
    weights = dict(zip(by_model.kept.tolist(), by_model.rule.weights, strict=True))
    voting = report.ensemble.voting
    for member, weight in zip(report.ensemble.members, voting.weights, strict=True):
        index = SETTINGS.archs.index(member.name.rpartition("-fold-")[0])
        assert weight == pytest.approx(weights[index] / FOLDS)
    known = table.rows("validation")
    answers = np.stack([predict(copy, member, known) for member in report.ensemble.members], axis=1)
    vote = soft_vote(answers, np.array(voting.weights))
    assert voting.temperature == pytest.approx(fit_temperature(vote, table.labels[known]), abs=1e-4)
    assert report.ensemble.data.images == {"train": 96, "validation": 20, "test": 16}


def test_a_fit_and_its_card_say_what_folds_chose(copy: Run) -> None:
    report = fit_report(copy.path, FitSettings(outlier_alpha=0.1, draws=100))
    assert report.folds == FOLDS
    lines = outlier_lines(report.ensemble, report.outliers, has_folds=True)
    assert "which no member learned" in lines[-1]
    # There are no more patients to set aside.
    assert not any("--certification" in line for line in lines)
    write_metadata(copy.ensemble_file, report.ensemble)
    assert facts_from_run(copy).folds == FOLDS


def test_a_vote_of_models_becomes_one_of_members() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    good = np.where(labels == 1, 0.8, 0.2)[:, None] + rng.uniform(-0.15, 0.15, (200, 4))
    bad = np.where(labels == 1, 0.2, 0.8)[:, None] + rng.uniform(-0.15, 0.15, (200, 2))
    positive = np.hstack([good, bad])
    members = np.stack([1 - positive, positive], axis=2)
    models = ({1: 0, 2: 2}, {1: 1, 2: 3}, {1: 4, 2: 5})
    first_halves = members[:, [0, 1, 4]]
    known = ValidationPredictions(members, labels, np.arange(200), ("no", "yes"))
    by_model = fit_vote(ValidationPredictions(first_halves, labels, np.arange(200), ("no", "yes")), FitSettings())
    vote = spread_vote(by_model, models, known)
    assert by_model.kept.tolist() == [0, 1]
    assert vote.kept.tolist() == [0, 1, 2, 3]
    assert vote.rule.weights == (0.25,) * 4
    assert vote.selection.weights.tolist() == [0.25, 0.25, 0.25, 0.25, 0, 0]
    assert vote.selection.contributions[4] is vote.selection.contributions[5] is by_model.selection.contributions[2]
    assert vote.weights_tried is not None
    assert list(vote.weights_tried) == [0, 1, 2, 3]
    assert vote.verdict(members).probabilities.shape == (200, 2)


def test_what_folds_do_not_allow_is_refused(copy: Run, trained: Run) -> None:
    with pytest.raises(SettingsError, match="--mode: expected soft or hard in a run with folds, got stack"):
        fit_report(copy.path, FitSettings(mode="stack"))
    hard = fit_report(copy.path, FitSettings(mode="hard", no_outliers=True)).ensemble.voting
    assert (hard.mode, hard.temperature) == ("hard", 1.0)
    shutil.copytree(trained.member_folder("test_resnet"), copy.member_folder("test_resnet"))
    with pytest.raises(MetadataError, match="expected members that were trained with --folds, got test_resnet"):
        fit_report(copy.path, FitSettings())
    with pytest.raises(ValueError, match="--folds: can't be combined with --snapshots"):
        TrainSettings.model_validate(SETTINGS.model_dump() | {"snapshots": 2})


def test_a_run_with_folds_takes_no_other_member_and_its_student_has_none(copy: Run, tmp_path: Path) -> None:
    given = AddSettings(classes=copy.data().classes, mean=(0, 0, 0), std=(1, 1, 1))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SettingsError, match=r"RUN: expected a run without folds, got .*Add the model to a run that"):
        add_member(copy, [str(tmp_path / "model.onnx")], given)
    # The data folder of a student is that of its teacher.
    started = read_metadata(copy.settings_file, RunSettings, "settings")
    settings = started.settings.model_copy(update={"folds": None})
    write_metadata(copy.settings_file, started.model_copy(update={"settings": settings}))
    assert copy.table().folds is not None
    assert fold_models(copy, copy.members(), FitSettings()) == ()
