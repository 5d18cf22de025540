"""Train the members of a run from labelled images."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from plurum.dicom_files import PatientNames
from plurum.errors import OutputError, PlurumError, SettingsError, needs_extra
from plurum.files import write_bytes
from plurum.regular_files import read_regular
from plurum.run import Run
from plurum.settings.options import option_from_field
from plurum.settings.training import TrainOptions, TrainSettings
from plurum.spec import ImageSpec, Member, read_member, write_metadata
from plurum.training.data.examples import check_batches
from plurum.training.data.sources import load_training_data
from plurum.training.data.store import image_spec, store_data
from plurum.training.learning.architectures import check_architectures, check_input, model_from_arch
from plurum.training.learning.backbones import backbone_from_arch, normalisation_of
from plurum.training.learning.history import plot_from_histories, read_history
from plurum.training.learning.jobs import ParallelJob, run_in_parallel
from plurum.training.learning.plan import RunSettings, TrainingPlan, is_finished, plan_trainings
from plurum.training.learning.precision import precision_for, training_device
from plurum.training.progress import show_progress

if TYPE_CHECKING:
    from plurum.training.learning.distributed import ProcessGroup

__all__ = ["TrainedRun", "check_architecture", "mark_started", "train_run"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """Result of training a run.

    Attributes:
        members: Members, in the order of the settings' architectures.
        reused: Names of members that were finished before.
        is_first: True for the process that prints messages; under `torchrun`, the first one.
    """

    members: tuple[Member, ...]
    reused: tuple[str, ...]
    is_first: bool = True


def train_run(source: str, settings: TrainSettings, out: Path, options: TrainOptions | None = None) -> TrainedRun:
    """Train members on the images of `source` and write them to the run `out`.

    A run that was started with the same settings resumes, also in the middle of a member. New trainings may follow
    those that it was started with. Settings and data are checked before anything is written, and unreadable data leave
    nothing behind. Under `torchrun`, all processes train each member together.

    Args:
        source: Data source, as for `load_data`.
        settings: Settings of all members.
        out: Folder of the run: new, empty, or an existing run.
        options: Options of the execution.

    Raises:
        DataError: the images can't be learnt from.
        SettingsError: an architecture, a size or a precision is unavailable.
        OutputError: `out` holds other files or a run with other settings, or the disk is full.
        MissingExtraError: PyTorch, timm, safetensors or scikit-learn is not installed.
    """
    with needs_extra("training"):
        from plurum.training.learning.distributed import join_processes
    options = options or TrainOptions()
    run = Run(out)
    plans = plan_trainings(settings)
    with join_processes() as world:
        missing = _share_result(world, lambda: _prepare(source, settings, run, plans, options, world.size))
        if options.jobs > 1 and len(missing) > 1:
            _train_in_parallel(run, missing, settings, options)
        else:
            for number, training in enumerate(missing, start=1):
                of = f"training {number} of {len(missing)}: {training.name}"
                _train(run, training, settings, options, world, of=of)
        if missing and world.is_first:
            _plot_histories(run, plans)
    names = [name for training in plans for name in training.members]
    reused = tuple(name for training in plans if training not in missing for name in training.members)
    members = tuple(read_member(run.member_folder(name) / "member.json") for name in names)
    return TrainedRun(members, reused, world.is_first)


def _share_result(world: ProcessGroup, prepare: Callable[[], list[TrainingPlan]]) -> list[TrainingPlan]:
    """Call `prepare` in the first process and return its result in all; on an error, only the first reports it."""
    result: list[TrainingPlan] | PlurumError = []
    if world.is_first:
        try:
            result = prepare()
        except PlurumError as error:
            result = error
    shared = world.broadcast(result)
    if isinstance(shared, PlurumError):
        if world.is_first:
            raise shared
        raise SystemExit(shared.exit_code)
    return shared


def _prepare(
    source: str, settings: TrainSettings, run: Run, plans: list[TrainingPlan], options: TrainOptions, processes: int
) -> list[TrainingPlan]:
    """Check settings and data, store the data, and return the trainings that are not finished."""
    fresh = options.fresh
    if processes > 1 and options.jobs > 1:
        raise SettingsError(f"--jobs: expected 1 under torchrun, which divides each member, got {options.jobs}")
    if processes > 1 and settings.uses_features:
        raise SettingsError("--freeze: can't be combined with torchrun, because a layer alone trains in one process")
    check_batches(settings, processes)
    run.claim()
    check_architectures(settings.archs)
    precision_for(settings.precision, training_device())
    _check_settings_unchanged(run, settings, fresh=fresh)
    names = PatientNames(options.pseudonym_key_file, options.keep_patient_ids)
    data = load_training_data(source, settings, names)
    check_batches(settings, processes, len(data.table.rows("train")))
    normalisation = normalisation_of(settings.archs) if settings.pretrained else None
    image = image_spec(data, settings, normalisation)
    missing = [training for training in plans if fresh or not is_finished(run, training)]
    for training in missing:
        check_architecture(training.arch, training.seed, len(data.classes), image, settings)
    with mark_started(run, RunSettings(data=source, settings=settings)):
        if fresh:
            _clear(run)
        _clear_hidden(run)
        store_data(run, data, settings, normalisation)
    return missing


def check_architecture(arch: str, seed: int, classes: int, image: ImageSpec, settings: TrainSettings) -> None:
    """Check that an architecture takes these images and has the parts that the settings freeze and train.

    Raises:
        SettingsError: it doesn't, or its weights can't be read.
    """
    model = model_from_arch(arch, classes, seed, pretrained=settings.pretrained)
    check_input(model, arch, classes, image)
    if not settings.freeze:
        return
    from plurum.training.learning.frozen import FrozenBackbone, freeze_layers

    try:
        if settings.uses_features:
            FrozenBackbone(model).check(image)
        else:
            freeze_layers(model, settings.unfreeze_last)
    except SettingsError as error:
        raise SettingsError(f"{arch}: {error}") from error


def _train_in_parallel(run: Run, missing: list[TrainingPlan], settings: TrainSettings, options: TrainOptions) -> None:
    from plurum.training.data.examples import Examples
    from plurum.training.learning.trainer import Trainer

    jobs = [ParallelJob(training.name, _train_in_slot, (run.path, training, settings, options)) for training in missing]
    steps = sum(Trainer(settings).steps(Examples.of(run, training.fold)) for training in missing)
    with show_progress(f"{len(missing)} members, {options.jobs} at a time", steps) as progress:
        run_in_parallel(jobs, options.jobs, progress)


def _train_in_slot(
    slot: int,
    path: Path,
    training: TrainingPlan,
    settings: TrainSettings,
    options: TrainOptions,
    progress: Callable[[int, str], None],
) -> None:
    """Train on the slot's part of this machine: a CUDA device, or an equal part of the cores."""
    import torch

    from plurum.training.learning.distributed import ALONE

    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    torch.set_num_threads(max(1, torch.get_num_threads() // options.jobs))
    _train(Run(path), training, settings, options, ALONE, progress)


def _train(
    run: Run,
    training: TrainingPlan,
    settings: TrainSettings,
    options: TrainOptions,
    world: ProcessGroup,
    progress: Callable[[int, str], None] | None = None,
    of: str = "",
) -> None:
    """Start or resume a training, and write its members; without `progress`, show it as that of `of`."""
    from plurum.training.data.examples import Examples
    from plurum.training.learning.checkpoints import write_member
    from plurum.training.learning.frozen import fit_model
    from plurum.training.learning.resume import StateFile
    from plurum.training.learning.trainer import Trainer

    metadata, examples, trainer = run.data(), Examples.of(run, training.fold), Trainer(settings, world)
    model = model_from_arch(training.arch, len(metadata.classes), training.seed, pretrained=settings.pretrained)
    precision = trainer.precision(metadata.image)
    _LOG.info("%s: %d epochs in %s on %s", training.name, settings.epochs, precision, trainer.device)
    state = StateFile(run.path / "unfinished" / f"{training.name}.pt", options.save_every_s)
    events = run.path / "tensorboard" / training.name if options.tensorboard and world.is_first else None
    with contextlib.ExitStack() as stack:
        if progress is None and world.is_first:
            progress = stack.enter_context(show_progress(f"{of} ({precision})", trainer.steps(examples)))
        try:
            given = progress or _ignore_progress
            trained = fit_model(trainer, model, examples, training.seed, state=state, events=events, progress=given)
        except SettingsError as error:
            raise SettingsError(f"{training.name}: {error}") from error
    if world.is_first:
        backbone = backbone_from_arch(training.arch)
        for name, snapshot in zip(training.members, trained.snapshots, strict=True):
            write_member(run, metadata, name, backbone, trained, snapshot)
        state.remove()
    world.wait()


def _ignore_progress(_count: int, _note: str) -> None:
    """Ignore progress: only the first process shows it."""


def _plot_histories(run: Run, plans: list[TrainingPlan]) -> None:
    """Write `report/training.png`, the plot of all trainings of the run."""
    histories, kept = {}, {}
    for training in plans:
        histories[training.name] = read_history(run.member_folder(training.members[0]) / "history.csv")
        members = [read_member(run.member_folder(name) / "member.json") for name in training.members]
        kept[training.name] = [member.best_epoch for member in members if member.best_epoch]
    write_bytes(run.report_folder / "training.png", plot_from_histories(histories, kept))


def _check_settings_unchanged(run: Run, settings: TrainSettings, *, fresh: bool) -> None:
    """Check that an existing run was started with these settings, or may be started over."""
    if not run.settings_file.is_file():
        return
    try:
        started = RunSettings.model_validate_json(read_regular(run.settings_file))
    except (OSError, ValidationError) as error:
        raise OutputError(
            f"{run.settings_file} was not written by this version of plurum train; name another --out"
        ) from error
    if fresh:
        return
    if started.distillation is not None:
        raise OutputError(f"{run.path} is a student of plurum distill. Name another --out, or start over with --fresh")
    before = started.settings
    then, now = before.model_dump(), settings.model_dump()
    if settings.trained_archs[: len(before.trained_archs)] == before.trained_archs:
        for key in ("archs", "seeds"):
            del then[key], now[key]
    differences = [
        f"{option_from_field(TrainSettings, key)}: expected {then[key]}, got {now[key]}"
        for key in then
        if then[key] != now[key]
    ]
    if differences:
        raise OutputError(
            f"{run.path} was started with other settings: {'; '.join(differences)}. Use the original settings, name "
            f"another --out, or start over with --fresh"
        )


@contextlib.contextmanager
def mark_started(run: Run, started: RunSettings) -> Iterator[None]:
    """Write `run.json` before the block prepares the run; remove it again if the block fails in a new run."""
    is_new = not run.settings_file.exists()
    made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    try:
        write_metadata(run.settings_file, started)
        yield
    except BaseException:
        if is_new:
            run.settings_file.unlink(missing_ok=True)
        for folder in made:
            # A folder stays if others have put files there meanwhile.
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _clear(run: Run) -> None:
    """Remove the results of training and fitting, but not a model repository, which may be in service."""
    run.ensemble_file.unlink(missing_ok=True)
    for file in run.path.glob("sites/*/ensemble.json"):
        file.unlink()
    ours = ("members", "unfinished", "tensorboard")
    for folder in (run.report_folder, run.data_folder, *(run.path / name for name in ours)):
        shutil.rmtree(folder, ignore_errors=True)


def _clear_hidden(run: Run) -> None:
    """Remove partial files of processes that were killed; no other process may train into this run meanwhile."""
    for folder, names in (
        ("", ".data.*"),
        ("", f".{run.settings_file.name}.*"),
        ("members", ".*"),
        ("unfinished", ".*"),
    ):
        for path in (run.path / folder).glob(names):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
