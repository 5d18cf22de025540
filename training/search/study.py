"""Search for the training settings with the lowest validation NLL, with Optuna.

STUDY/search.json           data source and settings; marks the folder as a study
STUDY/study.db              trials, in Optuna's SQLite storage
STUDY/data/                 images, as in a run
STUDY/search.html           report
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plurum.dicom_files import PatientNames
from plurum.errors import OutputError, SettingsError, needs_extra
from plurum.files import check_folder, lock_file, write_text
from plurum.run import Run
from plurum.settings.options import settings_from
from plurum.settings.search import AUGMENTATIONS, SearchSettings
from plurum.settings.training import TrainSettings
from plurum.spec import Metadata, Text, read_metadata, write_metadata
from plurum.training.data.examples import Examples, check_batches
from plurum.training.data.sources import load_training_data
from plurum.training.data.store import image_spec, store_data
from plurum.training.learning.architectures import check_architectures, model_from_arch
from plurum.training.learning.backbones import normalisation_of
from plurum.training.learning.history import Epoch
from plurum.training.learning.run import check_architecture
from plurum.training.search.page import write_page
from plurum.training.search.trials import SearchResult, Study, trials_from_study

__all__ = ["StudyMetadata", "search_settings", "trial_settings"]

# Trials before any is pruned, and before settings are drawn near the best ones.
_UNPRUNED, _RANDOM = 5, 10


class StudyMetadata(Metadata):
    """Data source and settings of a study, as `search.json` records them.

    Attributes:
        version: Version of the file format.
        data: Data source, as given to `plurum search`.
        training: Training settings that all trials share.
        search: Search settings; trials and minutes may change.
    """

    version: Literal[1] = 1
    data: Text
    training: TrainSettings
    search: SearchSettings


class _OutOfTimeError(Exception):
    """The budget ended within a trial."""


def search_settings(
    source: str,
    training: TrainSettings,
    search: SearchSettings,
    out: Path,
    progress: Callable[[str], None] = lambda _: None,
    names: PatientNames | None = None,
) -> SearchResult:
    """Train one member per trial, and return all trials and the best.

    A study that was started with the same settings resumes. The settings of a trial depend only on the seed, its number
    and the finished trials before it. So an interrupted trial runs again, and a resumed study draws the same trials.

    Args:
        source: Data source, as for `load_data`.
        training: Training settings that all trials share; each trial trains one of the architectures.
        search: Budget and ranges.
        out: Folder of the study: new, empty, or a study to resume.
        progress: Called with one line about the current trial.
        names: Names of the patients of DICOM files, as for `load_data`.

    Raises:
        DataError: the images can't be learnt from.
        SettingsError: an architecture, a size or a precision is unavailable, or no trial could be trained.
        OutputError: `out` holds other files or a study with other settings, or is in use.
        MissingExtraError: Optuna or PyTorch is not installed.
    """
    with needs_extra("search", "optuna"), needs_extra("training", "timm", "torch"):
        pass
    for name in search.augmentations:
        trial_settings(training, training.archs[0], name, search.learning_rates[0], search.weight_decays[0])
    check_architectures(training.archs)
    _check_study(out, StudyMetadata(data=source, training=training, search=search))
    data = load_training_data(source, training, names or PatientNames())
    normalisation = normalisation_of(training.archs) if training.pretrained else None
    check_batches(training, 1, len(data.table.rows("train")))
    for arch in training.archs:
        image = image_spec(data, training, normalisation)
        check_architecture(arch, training.seed, len(data.classes), image, training)
    with _locked(out):
        store_data(Run(out), data, training, normalisation)
        write_metadata(out / "search.json", StudyMetadata(data=source, training=training, search=search))
        with _open_study(out, training) as study:
            _run_trials(study, Examples.of(Run(out)), training, search, progress)
            result = SearchResult(source, training, tuple(trials_from_study(study)))
    if result.best is None:
        raise SettingsError(f"no trial could be trained: {result.trials[-1].note if result.trials else 'none ran'}")
    write_text(out / "search.html", write_page(result))
    return result


def trial_settings(
    training: TrainSettings, arch: str, augmentation: str, learning_rate: float, weight_decay: float
) -> TrainSettings:
    """Return the training settings of a trial.

    Raises:
        SettingsError: the augmentation contradicts the other settings.
    """
    changes: dict[str, Any] = {"archs": (arch,), "learning_rate": learning_rate, "weight_decay": weight_decay}
    return settings_from(TrainSettings, **(training.model_dump() | changes | AUGMENTATIONS[augmentation]))


def _check_study(out: Path, wanted: StudyMetadata) -> None:
    """Check that the folder is missing, empty, or a study of the same data and settings."""
    check_folder(out, "the study")
    file = out / "search.json"
    if not file.is_file():
        # An interrupted process may have left the images.
        if out.is_dir() and any(path.name != "data" and not path.name.startswith(".") for path in out.iterdir()):
            raise OutputError(f"{out} is not a study and not empty. Choose a new or empty folder.")
        return
    found = read_metadata(file, StudyMetadata, "valid settings of a study")
    budget = {"trials": wanted.search.trials, "minutes": wanted.search.minutes}
    if found.model_copy(update={"search": found.search.model_copy(update=budget)}) != wanted:
        raise OutputError(
            f"{out} was started with other data or settings; only --trials and --minutes may change. Use the original "
            f"ones, or name another --out"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Make the folder and lock it; remove it again if the block fails before anything is in it."""
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_file(out / ".lock")
    if lock is None:
        raise OutputError(f"{out} is in use by another plurum search. Wait for its end, or name another --out")
    try:
        yield
    finally:
        if {path.name for path in out.iterdir()} == {".lock"}:
            (out / ".lock").unlink()
            out.rmdir()
        os.close(lock)


@contextmanager
def _open_study(out: Path, training: TrainSettings) -> Iterator[Study]:
    """Open the study, and mark the trials of an interrupted process as failed."""
    import optuna
    from sqlalchemy.engine import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create("sqlite", database=str((out / "study.db").absolute())).render_as_string()
    storage = optuna.storages.RDBStorage(url)
    try:
        study: Study = optuna.create_study(
            storage=storage,
            study_name="plurum",
            direction="minimize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(_UNPRUNED, n_warmup_steps=training.epochs // 4),
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _run_trials(
    study: Study, examples: Examples, training: TrainSettings, search: SearchSettings, progress: Callable[[str], None]
) -> None:
    """Run trials until the number or the budget is reached."""
    import optuna

    while len(done := trials_from_study(study)) < search.trials:
        left_s = None if search.minutes is None else 60 * search.minutes - sum(trial.seconds for trial in done)
        if left_s is not None and left_s <= 0:
            break
        # A sampler of one seed would repeat its first draws in each process.
        seed = int(np.random.SeedSequence([training.seed, len(done)]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM, seed=seed, multivariate=False, constant_liar=False
        )
        trial = study.ask()
        # A budget too small for one trial still gives a result.
        limit_s = left_s if any(one.state == "complete" for one in done) else None
        try:
            _run_trial(study, trial, examples, training, search, limit_s, progress)
        except _OutOfTimeError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            break


def _run_trial(
    study: Study,
    trial: Any,
    examples: Examples,
    training: TrainSettings,
    search: SearchSettings,
    limit_s: float | None,
    progress: Callable[[str], None],
) -> None:
    """Train a member with the settings that the sampler draws, and tell the study its validation NLL."""
    import optuna

    from plurum.training.learning.frozen import fit_model
    from plurum.training.learning.trainer import Trainer

    arch = trial.suggest_categorical("arch", list(training.archs))
    augmentation = trial.suggest_categorical("augmentation", list(search.augmentations))
    rate = trial.suggest_float("learning_rate", *search.learning_rates, log=True)
    decay = trial.suggest_float("weight_decay", *search.weight_decays, log=True)
    settings = trial_settings(training, arch, augmentation, rate, decay)
    title = f"trial {len(trials_from_study(study)) + 1} of {search.trials}: {arch}, {augmentation}, rate {rate:.2g}"
    start_s = time.monotonic()

    def watch(epoch: Epoch) -> None:
        trial.report(epoch.validation_nll, epoch.epoch)
        progress(f"{title}, epoch {epoch.epoch} of {settings.epochs}, NLL {epoch.validation_nll:.3f}")
        if trial.should_prune():
            raise optuna.TrialPruned
        if limit_s is not None and time.monotonic() - start_s > limit_s:
            raise _OutOfTimeError

    progress(title)
    model = model_from_arch(arch, examples.classes, training.seed, pretrained=training.pretrained)
    try:
        trained = fit_model(Trainer(settings, watch=watch), model, examples, training.seed)
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except SettingsError as error:
        # Too high a learning rate; the sampler learns from it too.
        trial.set_user_attr("note", str(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        trial.set_user_attr("accuracy", trained.best.validation.accuracy)
        study.tell(trial, trained.best.validation.nll)
