"""From labelled images to a run full of members."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from plurum.errors import OutputError, SettingsError, needs_extra
from plurum.run import DataContract, Run
from plurum.spec import Member, read_member, write_contract
from plurum.training.architectures import check_architectures, check_input, member_names, model_from_arch
from plurum.training.precision import precision_for, training_device
from plurum.training.progress import shown
from plurum.training.settings import Begun, TrainSettings
from plurum.training.sources import load_data
from plurum.training.store import image_spec, store_data

__all__ = ["Training", "train_run"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A run that is filled.

    Attributes:
        members: In the order of the settings' architectures.
        reused: Names of those that were finished before.
    """

    members: tuple[Member, ...]
    reused: tuple[str, ...]


@dataclass(frozen=True)
class _Wanted:
    """A member to be."""

    name: str
    arch: str
    seed: int


def train_run(source: str, settings: TrainSettings, out: Path, *, fresh: bool = False) -> Training:
    """Train what `settings` ask for on the images that `source` names, and fill the run `out` with it.

    A run that was begun with the same settings goes on at its first unfinished member; architectures may be added
    behind those it was begun with. All that can be refused is refused before anything is written, and where data
    turn out to be unreadable, nothing is left behind.

    Args:
        source: As `load_data` takes it.
        settings: For all members.
        out: The run's folder, new, empty, or a run already.
        fresh: Remove what an earlier training and fit left in it.

    Raises:
        DataError: the images can't be learnt from.
        SettingsError: an architecture, a size or a precision that can't be had.
        OutputError: `out` holds something else, or a run that was begun otherwise.
        MissingExtraError: PyTorch, timm, safetensors or scikit-learn is not installed.
    """
    run = Run(out)
    run.claim()
    check_architectures(settings.archs)
    precision_for(settings.precision, training_device())
    _check_begun(run, settings, fresh=fresh)
    data = load_data(source, settings.seed)
    names = member_names(settings.archs)
    wanted = [
        _Wanted(name, arch, settings.seed + i) for i, (name, arch) in enumerate(zip(names, settings.archs, strict=True))
    ]
    missing = [member for member in wanted if fresh or not (run.member_folder(member.name) / "member.json").is_file()]
    for member in missing:
        model = model_from_arch(member.arch, len(data.classes), member.seed, pretrained=settings.pretrained)
        check_input(model, member.arch, len(data.classes), image_spec(data, settings))
    with _begun(run, Begun(data=source, settings=settings)):
        if fresh:
            _clear(run)
        contract = store_data(run, data, settings)
    for member in missing:
        _train_member(run, contract, member, settings)
    reused = tuple(member.name for member in wanted if member not in missing)
    return Training(tuple(read_member(run.member_folder(name) / "member.json") for name in names), reused)


def _train_member(run: Run, contract: DataContract, wanted: _Wanted, settings: TrainSettings) -> None:
    with needs_extra("training"):
        from plurum.training.checkpoints import write_member
        from plurum.training.trainer import Examples, Trainer
    trainer = Trainer(settings, contract.image)
    examples = Examples.of(run)
    model = model_from_arch(wanted.arch, len(contract.classes), wanted.seed, pretrained=settings.pretrained)
    _LOG.info("%s: %d epochs in %s on %s", wanted.name, settings.epochs, trainer.precision, trainer.device)
    with shown(f"{wanted.name} ({trainer.precision})", trainer.steps(examples)) as progress:
        try:
            trained = trainer.fit(model, examples, wanted.seed, progress)
        except SettingsError as error:
            raise SettingsError(f"{wanted.name}: {error}") from error
    write_member(run, contract, wanted.name, wanted.arch, trained)


def _check_begun(run: Run, settings: TrainSettings, *, fresh: bool) -> None:
    """Make sure that the run, if it was begun before, was begun with these settings or may be started over."""
    if not run.settings_file.is_file():
        return
    try:
        before = Begun.model_validate_json(run.settings_file.read_bytes()).settings
    except (OSError, ValidationError) as error:
        raise OutputError(
            f"{run.settings_file} was not written by plurum train, or by another version; name another --out"
        ) from error
    if fresh:
        return
    then, now = before.model_dump(), settings.model_dump()
    if settings.archs[: len(before.archs)] == before.archs:
        del then["archs"], now["archs"]
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
    for folder in (run.report_folder, run.path / "members", run.data_folder):
        shutil.rmtree(folder, ignore_errors=True)
