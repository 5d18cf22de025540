"""From labelled images to a run full of members."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plurum.errors import OutputError, PlurumError, SettingsError, needs_extra
from plurum.files import atomic_file
from plurum.regular_files import read_regular
from plurum.run import Run
from plurum.spec import Member, read_member, write_contract
from plurum.training.data.examples import check_batches
from plurum.training.data.sources import load_data
from plurum.training.data.store import image_spec, store_data
from plurum.training.learning.architectures import check_architectures, check_input, model_from_arch
from plurum.training.learning.history import plot_from_histories, read_history
from plurum.training.learning.jobs import Job, run_side_by_side
from plurum.training.learning.plan import Wanted, is_finished, trainings_of
from plurum.training.learning.precision import precision_for, training_device
from plurum.training.progress import shown
from plurum.training.settings import Begun, TrainSettings

if TYPE_CHECKING:
    from plurum.training.learning.distributed import World

__all__ = ["TrainOptions", "Training", "train_run"]

_LOG = logging.getLogger(__name__)


class TrainOptions(BaseModel):
    """How a training is done; nothing here changes what comes out of it.

    Attributes:
        fresh: Remove what an earlier training and fit left in the run.
        jobs: How many members are trained at a time, each in a process of its own.
        tensorboard: Write what TensorBoard shows, to `RUN/tensorboard`.
        save_every_s: Seconds between two savings of an unfinished member: that much work is lost at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fresh: bool = False
    jobs: Annotated[int, Field(ge=1, le=64)] = 1
    tensorboard: bool = False
    save_every_s: Annotated[float, Field(ge=0)] = 30.0


@dataclass(frozen=True)
class Training:
    """A run that is filled.

    Attributes:
        members: In the order of the settings' architectures.
        reused: Names of those that were finished before.
        is_first: Whether this process speaks; under `torchrun` one does.
    """

    members: tuple[Member, ...]
    reused: tuple[str, ...]
    is_first: bool = True


def train_run(source: str, settings: TrainSettings, out: Path, options: TrainOptions | None = None) -> Training:
    """Train what `settings` ask for on the images that `source` names, and fill the run `out` with it.

    A run that was begun with the same settings goes on where it ended, in the middle of a member too; trainings may
    be added behind those it was begun with. All that can be refused is refused before anything is written, and where
    data turn out to be unreadable, nothing is left behind. Under `torchrun` all processes train each member together.

    Args:
        source: As `load_data` takes it.
        settings: For all members.
        out: The run's folder, new, empty, or a run already.
        options: How the work is done.

    Raises:
        DataError: the images can't be learnt from.
        SettingsError: an architecture, a size or a precision that can't be had.
        OutputError: `out` holds something else, or a run that was begun otherwise, or the disk is full.
        MissingExtraError: PyTorch, timm, safetensors or scikit-learn is not installed.
    """
    with needs_extra("training"):
        from plurum.training.learning.distributed import joined
    options = options or TrainOptions()
    run = Run(out)
    wanted = trainings_of(settings)
    with joined() as world:
        missing = _told(world, lambda: _prepared(source, settings, run, wanted, options, world.size))
        if options.jobs > 1 and len(missing) > 1:
            _train_side_by_side(run, missing, settings, options)
        else:
            for member in missing:
                _train(run, member, settings, options, world)
        if missing and world.is_first:
            _draw(run, wanted)
    names = [name for training in wanted for name in training.members]
    reused = tuple(name for training in wanted if training not in missing for name in training.members)
    members = tuple(read_member(run.member_folder(name) / "member.json") for name in names)
    return Training(members, reused, world.is_first)


def _told(world: World, prepare: Callable[[], list[Wanted]]) -> list[Wanted]:
    """Return, in all processes, what the first one prepares; what it refuses, it says, and the others end silently."""
    found: list[Wanted] | PlurumError = []
    if world.is_first:
        try:
            found = prepare()
        except PlurumError as error:
            found = error
    told = world.told(found)
    if isinstance(told, PlurumError):
        if world.is_first:
            raise told
        raise SystemExit(told.exit_code)
    return told


def _prepared(
    source: str, settings: TrainSettings, run: Run, wanted: list[Wanted], options: TrainOptions, processes: int
) -> list[Wanted]:
    """Check all that can be checked, store the data, and return what is not trained yet."""
    fresh = options.fresh
    if processes > 1 and options.jobs > 1:
        raise SettingsError(f"--jobs is {options.jobs} under torchrun, which divides each member; name one of them")
    check_batches(settings, processes)
    run.claim()
    check_architectures(settings.archs)
    precision_for(settings.precision, training_device())
    _check_begun(run, settings, fresh=fresh)
    data = load_data(
        source,
        settings.seed,
        tile_size=settings.tile_size,
        max_tiles=settings.max_tiles,
        skip_unreadable=settings.skip_unreadable,
    )
    check_batches(settings, processes, len(data.table.rows("train")))
    missing = [training for training in wanted if fresh or not is_finished(run, training)]
    for training in missing:
        model = model_from_arch(training.arch, len(data.classes), training.seed, pretrained=settings.pretrained)
        check_input(model, training.arch, len(data.classes), image_spec(data, settings))
    with _begun(run, Begun(data=source, settings=settings)):
        if fresh:
            _clear(run)
        _clear_hidden(run)
        store_data(run, data, settings)
    return missing


def _train_side_by_side(run: Run, missing: list[Wanted], settings: TrainSettings, options: TrainOptions) -> None:
    from plurum.training.data.examples import Examples
    from plurum.training.learning.trainer import Trainer

    jobs = [Job(training.name, _train_in_slot, (run.path, training, settings, options)) for training in missing]
    steps = len(missing) * Trainer(settings).steps(Examples.of(run))
    with shown(f"{len(missing)} members, {options.jobs} at a time", steps) as progress:
        run_side_by_side(jobs, options.jobs, progress)


def _train_in_slot(
    slot: int,
    path: Path,
    training: Wanted,
    settings: TrainSettings,
    options: TrainOptions,
    progress: Callable[[int, str], None],
) -> None:
    """Train on a share of this machine: the slot's CUDA device, or as many cores as come to one slot."""
    import torch

    from plurum.training.learning.distributed import ALONE

    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    torch.set_num_threads(max(1, torch.get_num_threads() // options.jobs))
    _train(Run(path), training, settings, options, ALONE, progress)


def _train(
    run: Run,
    training: Wanted,
    settings: TrainSettings,
    options: TrainOptions,
    world: World,
    progress: Callable[[int, str], None] | None = None,
) -> None:
    """Train what is wanted, or go on with it, and write its members."""
    from plurum.training.data.examples import Examples
    from plurum.training.learning.checkpoints import write_member
    from plurum.training.learning.resume import StateFile
    from plurum.training.learning.trainer import Trainer

    contract, examples, trainer = run.data(), Examples.of(run), Trainer(settings, world)
    model = model_from_arch(training.arch, len(contract.classes), training.seed, pretrained=settings.pretrained)
    precision = trainer.precision(contract.image)
    _LOG.info("%s: %d epochs in %s on %s", training.name, settings.epochs, precision, trainer.device)
    state = StateFile(run.path / "unfinished" / f"{training.name}.pt", options.save_every_s)
    events = run.path / "tensorboard" / training.name if options.tensorboard and world.is_first else None
    with contextlib.ExitStack() as stack:
        if progress is None and world.is_first:
            progress = stack.enter_context(shown(f"{training.name} ({precision})", trainer.steps(examples)))
        try:
            trained = trainer.fit(model, examples, training.seed, state=state, events=events, progress=progress)
        except SettingsError as error:
            raise SettingsError(f"{training.name}: {error}") from error
    if world.is_first:
        for name, snapshot in zip(training.members, trained.snapshots, strict=True):
            write_member(run, contract, name, training.arch, trained, snapshot)
        state.remove()
    world.wait()


def _draw(run: Run, wanted: list[Wanted]) -> None:
    """Write `report/training.png`: how all trainings of the run went."""
    histories, kept = {}, {}
    for training in wanted:
        histories[training.name] = read_history(run.member_folder(training.members[0]) / "history.csv")
        members = [read_member(run.member_folder(name) / "member.json") for name in training.members]
        kept[training.name] = [member.best_epoch for member in members if member.best_epoch]
    with atomic_file(run.report_folder / "training.png") as hidden:
        hidden.write_bytes(plot_from_histories(histories, kept))


def _check_begun(run: Run, settings: TrainSettings, *, fresh: bool) -> None:
    """Make sure that the run, if it was begun before, was begun with these settings or may be started over."""
    if not run.settings_file.is_file():
        return
    try:
        before = Begun.model_validate_json(read_regular(run.settings_file)).settings
    except (OSError, ValidationError) as error:
        raise OutputError(
            f"{run.settings_file} was not written by plurum train, or by another version; name another --out"
        ) from error
    if fresh:
        return
    then, now = before.model_dump(), settings.model_dump()
    if settings.trained_archs[: len(before.trained_archs)] == before.trained_archs:
        for key in ("archs", "seeds"):
            del then[key], now[key]
    differences = [f"--{key.replace('_', '-')} {then[key]} and not {now[key]}" for key in then if then[key] != now[key]]
    if differences:
        raise OutputError(
            f"{run.path} was begun with {', '.join(differences)}; train with what it was begun with, name another "
            f"--out, or start over with --fresh"
        )


@contextlib.contextmanager
def _begun(run: Run, begun: Begun) -> Iterator[None]:
    """Mark the folder as a run while a block prepares it; undo that if the block fails in a run that is new."""
    is_new = not run.settings_file.exists()
    made = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    try:
        write_contract(run.settings_file, begun)
        yield
    except BaseException:
        if is_new:
            run.settings_file.unlink(missing_ok=True)
        for folder in made:
            # What somebody else has put there meanwhile stays.
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _clear(run: Run) -> None:
    """Remove what training and fit wrote; a model repository stays, as it may be being served."""
    run.ensemble_file.unlink(missing_ok=True)
    ours = ("members", "unfinished", "tensorboard")
    for folder in (run.report_folder, run.data_folder, *(run.path / name for name in ours)):
        shutil.rmtree(folder, ignore_errors=True)


def _clear_hidden(run: Run) -> None:
    """Remove what earlier processes were writing when they were killed; nobody else trains into this run meanwhile."""
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
