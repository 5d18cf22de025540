"""Train a student: one small network that imitates the vote of a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plurum.errors import OutputError, SettingsError, needs_extra
from plurum.files import atomic_folder, sha256_of
from plurum.models import model_from_checkpoint
from plurum.predictions.arrays import Floats
from plurum.run import Run, number_patients
from plurum.settings.distilling import DistillSettings
from plurum.settings.training import TrainSettings
from plurum.spec import Ensemble, Member, read_member, read_metadata, write_metadata
from plurum.training.adding.add import check_member_name
from plurum.training.data.examples import Examples
from plurum.training.distilling.images import StudentImages, share_data, student_images
from plurum.training.distilling.report import DistillationReport, compare_predictions
from plurum.training.inference.member_costs import multiply_adds_of_member
from plurum.training.inference.predictions import predict_outputs
from plurum.training.learning.architectures import check_architectures, model_from_arch
from plurum.training.learning.backbones import backbone_from_arch
from plurum.training.learning.plan import (
    Distillation,
    RunSettings,
    TrainingPlan,
    check_takes_members,
    is_finished,
    plan_trainings,
)
from plurum.training.learning.precision import precision_for, training_device
from plurum.training.learning.run import check_architecture, mark_started
from plurum.training.progress import show_progress
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.calibration import fit_temperature
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import softmax, temper

if TYPE_CHECKING:
    from torch import nn

    from plurum.training.learning.optimizer_step import BatchLoss
    from plurum.training.learning.resume import StateFile
    from plurum.training.learning.trainer import TrainedModel

__all__ = ["distill_run"]

# Bootstrap resamples, by patient.
_DRAWS = 1000


def distill_run(
    path: Path,
    settings: DistillSettings,
    out: Path,
    given: Mapping[str, object] | None = None,
    save_every_s: float = 30.0,
) -> DistillationReport:
    """Train a student of the run `path` on its training images, write it to the run `out`, and score it.

    The student imitates the vote and, with a label weight, learns the labels. It sees no image that the run holds out;
    validation images choose its best epoch. Then the same architecture is trained on labels for as many steps. A run
    that was started with the same settings resumes.

    Args:
        path: Fitted run that `plurum train` trained.
        settings: Settings of the student.
        out: Folder of the student's run: new, empty, or one to resume.
        given: Training settings that differ from those of the run's members; see `STUDENT_FIELDS`.
        save_every_s: Seconds between checkpoints.

    Raises:
        DataError: the run has no test images, or unlabelled images are unreadable or of its patients.
        MetadataError: the run is not fitted, or was not trained by `plurum train`.
        OutputError: `out` holds other files or another student, or the run has a member of the student's name.
        SettingsError: a setting or the architecture is unavailable.
        MissingExtraError: PyTorch, timm, safetensors or SciPy is not installed.
    """
    teacher = Run(path)
    ensemble = teacher.ensemble()
    with needs_extra("training"):
        began = read_metadata(teacher.settings_file, RunSettings, "the settings of plurum train")
        training = settings.student_settings(began.settings, dict(given or {}))
        job = _Distillation(teacher, ensemble, Run(out), settings, began, training, save_every_s)
        return job.run_all()


@dataclass(frozen=True)
class _Distillation:
    """One call of `distill_run`.

    Attributes:
        teacher: Run of the teacher.
        ensemble: Ensemble of that run.
        run: Run of the student.
        settings: Settings of the student.
        began: Data and settings of the teacher's run.
        training: Settings of the student's training.
        save_every_s: Seconds between checkpoints.
    """

    teacher: Run
    ensemble: Ensemble
    run: Run
    settings: DistillSettings
    began: RunSettings
    training: TrainSettings
    save_every_s: float

    @property
    def plan(self) -> TrainingPlan:
        """Training of the student."""
        return plan_trainings(self.training)[0]

    @property
    def _comparison(self) -> str:
        """Name of the training on labels."""
        return f"{self.plan.name}-on-labels"

    @property
    def report_file(self) -> Path:
        """File with the result."""
        return self.run.report_folder / "distillation.json"

    def run_all(self) -> DistillationReport:
        """Check everything, train what is not finished, and return the report."""
        self._check()
        unlabelled = self.settings.unlabelled
        images = student_images(self.teacher, None if unlabelled is None else Path(unlabelled))
        with mark_started(self.run, self._stated()):
            share_data(self.teacher, self.run)
        if not is_finished(self.run, self.plan):
            self._train_student(images)
        student = read_member(self.run.member_folder(self.plan.name) / "member.json")
        report = self._read_report()
        if report is None:
            report = self._score(student, images)
        if self.settings.add is not None:
            self._add(student, self.settings.add)
        report = report.model_copy(update={"added": self.settings.add})
        write_metadata(self.report_file, report)
        self._state(self._comparison).remove()
        return report

    def _stated(self) -> RunSettings:
        distillation = Distillation(
            run=str(self.teacher.path),
            ensemble=sha256_of(self.teacher.ensemble_file),
            temperature=self.settings.temperature,
            label_weight=self.settings.label_weight,
            unlabelled=self.settings.unlabelled,
        )
        return RunSettings(data=self.began.data, settings=self.training, distillation=distillation)

    def _check(self) -> None:
        """Check the architecture, the student's run and its name before anything is written."""
        self.run.claim()
        if self.run.settings_file.is_file():
            before = read_metadata(self.run.settings_file, RunSettings, "the settings of plurum distill", OutputError)
            if before != self._stated():
                raise OutputError(
                    f"--out: expected a new folder, or the student of the same vote and settings, got {self.run.path}. "
                    f"Name another folder."
                )
        arch, data = self.settings.arch, self.teacher.data()
        check_architectures([arch])
        precision_for(self.training.precision, training_device())
        check_architecture(arch, self.training.seed, len(data.classes), data.image, self.training)
        if self.settings.add is not None:
            check_takes_members(self.teacher, "--add")
        if self.settings.add is not None and not is_finished(self.run, self.plan):
            check_member_name(self.teacher, self.settings.add, "--add")

    def _train_student(self, images: StudentImages) -> None:
        from plurum.training.distilling.teacher import Teacher
        from plurum.training.learning.checkpoints import write_member

        data, plan, wanted = self.teacher.data(), self.plan, self.settings
        weights = (wanted.temperature, wanted.label_weight, self.training.label_smoothing)
        teacher = Teacher(self.teacher, self.ensemble, data.image, *weights)
        state = self._state(plan.name)
        trained = self._fit(f"student {plan.name}", self.training, images.examples, state, teacher)
        write_member(self.run, data, plan.name, backbone_from_arch(plan.arch), trained, trained.best)
        state.remove()

    def _state(self, name: str) -> StateFile:
        from plurum.training.learning.resume import StateFile

        return StateFile(self.run.path / "unfinished" / f"{name}.pt", self.save_every_s)

    def _fit(
        self, what: str, settings: TrainSettings, examples: Examples, state: StateFile, loss: BatchLoss | None
    ) -> TrainedModel:
        """Train the student's architecture, with the loss or on labels."""
        from plurum.training.learning.trainer import Trainer

        trainer = Trainer(settings, loss=loss)
        model = model_from_arch(self.plan.arch, examples.classes, self.plan.seed, pretrained=settings.pretrained)
        with show_progress(what, trainer.steps(examples)) as progress:
            try:
                return trainer.fit(model, examples, self.plan.seed, state=state, progress=progress)
            except SettingsError as error:
                raise SettingsError(f"{what}: {error}") from error

    def _train_on_labels(self, images: StudentImages, state: StateFile) -> nn.Module:
        """Return the student's architecture, trained on labels alone for as many steps."""
        examples = Examples.of(self.run)
        rounds = len(images.examples.train) / len(examples.train)
        of_run = self.began.settings
        changed = {"epochs": max(1, round(self.training.epochs * rounds)), "balance": of_run.balance}
        settings = self.training.model_copy(update=changed)
        trained = self._fit(f"{self.plan.name} on labels, to compare", settings, examples, state, None)
        model = model_from_arch(self.plan.arch, examples.classes, self.plan.seed)
        model.load_state_dict(trained.best.weights)
        return model

    def _score(self, student: Member, images: StudentImages) -> DistillationReport:
        """Score the student on test images, beside the vote and the same architecture trained on labels."""
        from plurum.training.distilling.teacher import predict_vote

        members = predict_outputs(self.teacher, self.ensemble, ("test",))["test"].probabilities
        found = {
            "vote": predict_vote(members, self.ensemble.rule),
            "student": self._predict(model_from_checkpoint(student, self.run.checkpoint(student))),
        }
        if not self.settings.no_comparison:
            found["labels"] = self._predict(self._train_on_labels(images, self._state(self._comparison)))
        table = self.run.table()
        rows = table.rows("test")
        labels = table.labels[rows]
        bootstrap = Bootstrap(number_patients([table.patients[row] for row in rows]), _DRAWS, self.training.seed)
        scores = {name: compute_scores(one, labels) for name, one in found.items()}
        return DistillationReport(
            member=student.name,
            images={"labelled": len(table.rows("train")), "unlabelled": images.unlabelled},
            left_out=images.left_out,
            student=scores["student"],
            vote=scores["vote"],
            labels=scores.get("labels"),
            multiply_adds={
                "student": multiply_adds_of_member(self.run, student),
                "vote": sum(multiply_adds_of_member(self.teacher, member) for member in self.ensemble.members),
            },
            differences={
                name: compare_predictions(found["student"], found[name], labels, bootstrap)
                for name in ("labels", "vote")
                if name in found
            },
        )

    def _predict(self, model: nn.Module) -> Floats:
        """Return the probabilities for test images, `[images, classes]`, at the best temperature on validation."""
        table, pixels, image = self.run.table(), self.run.pixels(), self.run.data().image
        model = model.to(training_device())
        known, test = (
            softmax(predict_logits(model, pixels, table.rows(split), image)) for split in ("validation", "test")
        )
        return temper(test, fit_temperature(known, table.labels[table.rows("validation")]))

    def _read_report(self) -> DistillationReport | None:
        """Return the result of a finished run; None if figures are missing."""
        if not self.report_file.is_file():
            return None
        report = read_metadata(self.report_file, DistillationReport, "a report of plurum distill")
        return report if report.labels is not None or self.settings.no_comparison else None

    def _add(self, student: Member, name: str) -> None:
        """Add a copy of the student to the teacher's run, unless it has it already."""
        folder = self.teacher.member_folder(name)
        if folder.is_dir() and read_member(folder / "member.json").sha256 == student.sha256:
            return
        check_member_name(self.teacher, name, "--add")
        with atomic_folder(folder) as hidden:
            for file in (student.checkpoint, "history.csv"):
                shutil.copyfile(self.run.member_folder(student.name) / file, hidden / file)
            write_metadata(hidden / "member.json", student.model_copy(update={"name": name}))
