"""Students: what they learn from, how they resume, and that their runs are like any other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from plurum.errors import OutputError
from plurum.run import Run
from plurum.settings.distilling import DistillSettings
from plurum.training import FitSettings, fit_run, train_run
from plurum.training.distilling.distill import distill_run
from plurum.training.distilling.report import DistillationReport
from plurum.training.distilling.teacher import Teacher
from plurum.training.learning.plan import RunSettings
from tests.cli.command_line import CommandLine
from tests.sample_runs.trained_run import SETTINGS

ARCH = "test_byobnet"
ALONE = DistillSettings(arch=ARCH, no_comparison=True, label_weight=0)


@pytest.fixture(scope="module")
def student(teacher: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, DistillationReport]:
    """Run of a student, and its report."""
    out = tmp_path_factory.mktemp("student") / "run"
    return Run(out), distill_run(teacher.path, DistillSettings(arch=ARCH, label_weight=0), out)


def scramble(teacher: Run, folder: Path) -> Run:
    """Return a copy of the run with other labels of training images, and other test images."""
    run = Run(shutil.copytree(teacher.path, folder))
    with (run.data_folder / "items.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classes = run.data().classes
    for row in rows:
        if row["split"] == "train":
            row["label"] = classes[(classes.index(row["label"]) + 1) % len(classes)]
    with (run.data_folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pixels = np.array(run.pixels())
    pixels[run.table().rows("test")] = 0
    np.save(run.data_folder / "pixels.npy", pixels)
    return run


def test_a_student_is_scored_beside_the_vote_and_its_architecture_on_labels(
    student: tuple[Run, DistillationReport], teacher: Run
) -> None:
    run, report = student
    assert report == DistillationReport.model_validate_json((run.report_folder / "distillation.json").read_bytes())
    assert report.labels is not None
    assert report.student.accuracy > 0.5
    assert report.student.images == report.vote.images == report.labels.images == len(teacher.table().rows("test"))
    assert set(report.differences) == {"vote", "labels"}
    saved = report.differences["labels"]["nll"]
    assert saved.value == pytest.approx(report.student.nll - report.labels.nll)
    assert saved.low is not None
    assert saved.high is not None
    assert saved.value is not None
    assert saved.low <= saved.value <= saved.high
    assert 0 < report.multiply_adds["student"] < report.multiply_adds["vote"]
    assert not (run.path / "unfinished").exists()
    # The network trained on labels is no member, which would vote.
    assert [member.name for member in run.members()] == [ARCH]


def test_a_student_can_be_fitted_with_an_outlier_test(
    student: tuple[Run, DistillationReport], teacher: Run, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(student[0].path, tmp_path / "run"))
    ensemble = fit_run(run.path, FitSettings(draws=100))
    assert ensemble.outliers is not None
    assert ensemble.data.fingerprint == teacher.ensemble().data.fingerprint


def test_neither_labels_nor_test_images_nor_interruptions_change_a_student(
    student: tuple[Run, DistillationReport], teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out, calls = scramble(teacher, tmp_path / "teacher"), tmp_path / "run", 0
    imitate = Teacher.__call__

    def fail_once(self: Teacher, *batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return imitate(self, *batch)

    monkeypatch.setattr(Teacher, "__call__", fail_once)
    with pytest.raises(KeyboardInterrupt):
        distill_run(other.path, ALONE, out, save_every_s=0)
    assert calls == 15
    report = distill_run(other.path, ALONE, out)
    # Ten steps an epoch: the 15th is repeated, the others are not.
    assert calls == 10 * SETTINGS.epochs + 1
    (found,), (expected,) = Run(out).members(), student[0].members()
    assert found.sha256 == expected.sha256
    assert report.labels is None


def test_labels_change_a_student_that_learns_them(teacher: Run, tmp_path: Path) -> None:
    settings = ALONE.model_copy(update={"label_weight": 0.5})
    runs = [teacher, scramble(teacher, tmp_path / "teacher")]
    for number, run in enumerate(runs):
        distill_run(run.path, settings, tmp_path / str(number), {"epochs": 1})
    one, other = (Run(tmp_path / str(number)).members()[0].sha256 for number in range(len(runs)))
    assert one != other


def test_a_finished_student_is_not_trained_again(
    student: tuple[Run, DistillationReport], teacher: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Teacher, "__call__")
    run, report = student
    assert distill_run(teacher.path, DistillSettings(arch=ARCH, label_weight=0), run.path) == report


def test_another_student_or_a_training_does_not_replace_it(
    student: tuple[Run, DistillationReport], teacher: Run, archive: Path
) -> None:
    run, _ = student
    before = run.settings_file.read_bytes()
    with pytest.raises(OutputError, match="--out: expected a new folder, or the student of the same vote"):
        distill_run(teacher.path, DistillSettings(arch=ARCH, label_weight=0, temperature=2), run.path)
    with pytest.raises(OutputError, match="--out: expected a new folder, or the student of the same vote"):
        distill_run(teacher.path, DistillSettings(arch=ARCH), run.path)
    with pytest.raises(OutputError, match="is a student of plurum distill"):
        train_run(str(archive), SETTINGS, run.path)
    assert run.settings_file.read_bytes() == before


def test_training_settings_are_those_of_the_run_unless_given(
    student: tuple[Run, DistillationReport], teacher: Run
) -> None:
    started = RunSettings.model_validate_json(student[0].settings_file.read_bytes())
    assert started.settings == SETTINGS.model_copy(update={"archs": (ARCH,)})
    assert started.distillation is not None
    assert started.distillation.run == str(teacher.path)
    of_run = SETTINGS.model_copy(update={"balance": "weights", "label_smoothing": 0.1})
    given = ALONE.student_settings(of_run, {"epochs": 7, "mixup": 0.2})
    assert (given.epochs, given.mixup, given.batch_size) == (7, 0.2, SETTINGS.batch_size)
    assert (given.balance, given.label_smoothing) == ("none", 0.1)


def test_a_student_becomes_a_member_of_the_run(
    student: tuple[Run, DistillationReport], teacher: Run, tmp_path: Path, plurum: CommandLine
) -> None:
    whole = Run(shutil.copytree(teacher.path, tmp_path / "whole"))
    out = shutil.copytree(student[0].path, tmp_path / "student")
    started = json.loads((out / "run.json").read_text())
    started["distillation"]["run"] = str(whole.path)
    (out / "run.json").write_text(json.dumps(started))
    command = ("distill", whole.path, "--arch", ARCH, "--label-weight", 0, "--out", out)
    with pytest.raises(OutputError, match=r"--add: .* has a member 'test_resnet' already"):
        distill_run(whole.path, DistillSettings(arch=ARCH, label_weight=0, add="test_resnet"), out)
    said = plurum.said(*command, "--add", "student")
    assert f"added to {whole.path} as student; next: plurum fit {whole.path} --cascade" in said
    assert f"next: plurum fit {out}" in said
    # Again: nothing to do.
    assert json.loads(plurum.said(*command, "--add", "student", "--json"))["added"] == "student"
    names = [member.name for member in whole.members()]
    assert names == ["student", "test_byobnet", "test_resnet"]
    ensemble = fit_run(whole.path, FitSettings(no_outliers=True, select="all", draws=100))
    assert [member.name for member in ensemble.members] == names


def test_an_interruption_says_how_to_resume(
    teacher: Run, tmp_path: Path, plurum: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Teacher, "__call__", interrupt)
    ended = plurum.ended("distill", teacher.path, "--arch", ARCH, "--out", tmp_path / "run")
    assert ended == (130, "", "plurum: interrupted; run the same command again to resume\n")
    assert "has no finished member" in plurum.refused("fit", tmp_path / "run")


def test_mistakes_give_one_line_and_leave_nothing(
    teacher: Run, unfitted: Run, tmp_path: Path, plurum: CommandLine
) -> None:
    out = tmp_path / "run"
    command = ("--arch", ARCH, "--out", out)
    assert "has no ensemble.json. Fit the run" in plurum.refused("distill", unfitted.path, *command)
    assert "timm has no architecture 'nonsense'" in plurum.refused(
        "distill", teacher.path, "--arch", "nonsense", "--out", out
    )
    assert "--temperature: " in plurum.refused("distill", teacher.path, *command, "--temperature", 0)
    assert "--label-weight: " in plurum.refused("distill", teacher.path, *command, "--label-weight", 1)
    assert "is neither a folder of images" in plurum.refused(
        "distill", teacher.path, *command, "--unlabelled", tmp_path / "missing"
    )
    assert "--add: expected letters" in plurum.refused("distill", teacher.path, *command, "--add", "a b")
    assert not out.exists()
