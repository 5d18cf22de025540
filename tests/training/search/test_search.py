"""Searches: reproducible trials whatever interrupts them, a budget, refusals, and a command that trains the best."""

from __future__ import annotations

import shlex
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plurum.errors import OutputError, SettingsError
from plurum.run import Run
from plurum.settings.options import settings_from
from plurum.settings.search import SearchSettings
from plurum.settings.training import TrainSettings
from plurum.training.learning import frozen
from plurum.training.search import study as studies
from plurum.training.search.page import write_page
from plurum.training.search.study import search_settings
from plurum.training.search.trials import SearchResult, SearchTrial, command_from_settings
from tests.cli.command_line import CommandLine
from tests.training.data_files import write_classes

pytest.importorskip("optuna")
# SQLAlchemy leaves closing connections of SQLite to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TRAINING = settings_from(
    TrainSettings,
    archs=("test_byobnet", "test_resnet"),
    epochs=2,
    batch_size=32,
    image_size=32,
    precision="fp32",
    flip=True,
)
SEARCH = SearchSettings(trials=7)


def search(archive: Path, out: Path, training: TrainSettings = TRAINING, **changes: Any) -> SearchResult:
    options = settings_from(SearchSettings, **(SEARCH.model_dump() | changes))
    return search_settings(str(archive), training, options, out)


def drawn(result: SearchResult) -> list[tuple[Any, ...]]:
    """Return what each trial trained, and its NLL by epoch."""
    return [
        (one.arch, one.augmentation, one.learning_rate, one.weight_decay, one.state, dict(one.epochs))
        for one in result.trials
    ]


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Return a search that nothing interrupted."""
    return search(archive, tmp_path_factory.mktemp("whole") / "study")


def test_trials_differ_and_the_best_has_the_lowest_nll(whole: SearchResult) -> None:
    assert [trial.number for trial in whole.trials] == list(range(1, 8))
    assert len({trial.learning_rate for trial in whole.trials}) == 7
    assert all(1e-4 <= trial.learning_rate <= 1e-2 for trial in whole.trials)
    assert whole.best is not None
    complete = [trial.nll for trial in whole.trials if trial.state == "complete"]
    assert whole.best.nll == min(nll for nll in complete if nll is not None)


def test_a_killed_and_resumed_search_draws_the_same_trials(
    whole: SearchResult, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    fit = frozen.fit_model

    def fit_until_killed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            # As a kill does: no line of the search runs afterwards.
            raise KeyboardInterrupt
        return fit(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "fit_model", fit_until_killed)
        with pytest.raises(KeyboardInterrupt):
            search(archive, tmp_path / "study")
    # The killed trial runs again.
    resumed = search(archive, tmp_path / "study")
    assert drawn(resumed) == drawn(whole)
    # More trials continue the same sequence.
    apart = search(archive, tmp_path / "other", trials=3)
    assert drawn(apart) == drawn(whole)[:3]
    assert drawn(search(archive, tmp_path / "other")) == drawn(whole)


@pytest.mark.slow
def test_a_killed_process_resumes_with_the_same_trials(whole: SearchResult, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = ["--arch", "test_byobnet", "--arch", "test_resnet", "--epochs", "2", "--image-size", "32", "--flip"]
    words += ["--precision", "fp32", "--trials", "7", "--out", str(out)]
    with subprocess.Popen([sys.executable, "-m", "plurum", "search", str(archive), *words]) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and count_finished(out) < 2:
            time.sleep(0.02)
        process.kill()
    assert 2 <= count_finished(out) < 7
    assert drawn(search(archive, out)) == drawn(whole)


def count_finished(out: Path) -> int:
    if not (out / "search.json").is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True)) as database:
            query = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
            return int(database.execute(query).fetchone()[0])
    except sqlite3.Error:
        return 0


def test_unreadable_images_leave_nothing(tmp_path: Path, plurum: CommandLine) -> None:
    write_classes(tmp_path / "data", {"CE": 4, "LAA": 4})
    broken = tmp_path / "data" / "LAA" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    options = ("--arch", "test_byobnet", "--image-size", 32, "--out", tmp_path / "study")
    assert "1 of 8 images can't be read" in plurum.refused("search", tmp_path / "data", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_command_trains_the_best_again(
    whole: SearchResult, tmp_path: Path, plurum: CommandLine, archive: Path
) -> None:
    words = shlex.split(whole.command)
    assert words[:3] == ["plurum", "train", str(archive)]
    assert "--flip" in words
    plurum.said(*words[1:], "--out", tmp_path / "run")
    (member,) = Run(tmp_path / "run").members()
    assert whole.best is not None
    assert member.validation is not None
    assert (member.validation.nll, member.validation.accuracy) == (whole.best.nll, whole.best.accuracy)


def test_a_search_from_the_command_line(archive: Path, tmp_path: Path, plurum: CommandLine) -> None:
    out = tmp_path / "study"
    command = ("search", archive, "--arch", "test_byobnet", "--image-size", 32, "--epochs", 1, "--out", out)
    printed = plurum.said(*command, "--trials", 2, "--augmentations", "none, mixup", "--learning-rates", "1e-3,2e-3")
    assert f"2 trials, 0 of them pruned; report: {out / 'search.html'}" in printed
    assert f"next: plurum train {archive} --arch test_byobnet" in printed
    page = (out / "search.html").read_text()
    assert "data:image/png;base64" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "--trials and --minutes may change" in plurum.refused(*command, "--trials", 2)
    for options, message in (
        (("--learning-rates", "1"), "--learning-rates: expected LOW,HIGH, such as 1e-4,1e-2, got '1'"),
        (("--augmentations", "shift,shift"), "--augmentations: expected each name once, got shift,shift"),
        (("--learning-rates", "2,1"), "--learning-rates: expected LOW,HIGH, got 2,1. Exchange them"),
        (("--augmentations", "blur"), "--augmentations: expected 'none', 'shift'"),
        (("--trials", 0), "--trials: expected a number greater than or equal to 1, got 0"),
    ):
        assert message in plurum.refused(*command, *options)


def test_mixup_is_refused_with_frozen_layers_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    training = settings_from(TrainSettings, archs=("test_resnet",), pretrained=True, freeze=True)
    with pytest.raises(SettingsError, match="--mixup: can't be combined with --freeze"):
        search(archive, tmp_path / "study", training, augmentations=("none", "mixup"))
    assert not (tmp_path / "study").exists()


def test_a_folder_with_other_files_or_in_use_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a study and not empty"):
        search(archive, tmp_path)
    search(archive, tmp_path / "study", trials=1)
    with studies._locked(tmp_path / "study"), pytest.raises(OutputError, match="is in use by another plurum search"):
        search(archive, tmp_path / "study", trials=1)


def test_the_budget_ends_a_search_and_a_larger_one_resumes_it(archive: Path, tmp_path: Path) -> None:
    # Less than a trial takes: the first one ends all the same, so that there is a result.
    first = search(archive, tmp_path / "study", minutes=1e-6)
    assert len(first.trials) == 1
    assert drawn(search(archive, tmp_path / "study", minutes=1e-6)) == drawn(first)
    longer = search(archive, tmp_path / "study", trials=2, minutes=60.0)
    assert len(longer.trials) == 2
    assert drawn(longer)[:1] == drawn(first)


def test_a_diverged_trial_is_noted_and_the_search_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    fit = frozen.fit_model

    def diverge_once(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise SettingsError("the training diverged in epoch 1")
        return fit(*given, **named)

    monkeypatch.setattr(frozen, "fit_model", diverge_once)
    result = search(archive, tmp_path / "study", trials=2)
    assert [trial.note for trial in result.trials] == ["the training diverged in epoch 1", ""]
    assert result.best is result.trials[1]


def test_a_page_shows_pruned_and_failed_trials() -> None:
    def trial(number: int, **values: Any) -> SearchTrial:
        given: dict[str, Any] = {
            "state": "complete", "arch": "a$b", "augmentation": "none", "learning_rate": 1e-3, "weight_decay": 0.1,
            "nll": 1.0 / number, "accuracy": 0.5, "epochs": {1: 1.0, 2: 1.0 / number}, "seconds": 2.0,
        }  # fmt: skip
        return SearchTrial(number=number, **(given | values))

    failed: dict[str, Any] = {"state": "pruned", "nll": None, "accuracy": None, "epochs": {}, "note": "<b>diverged</b>"}
    result = SearchResult("digits", TRAINING, (trial(1), trial(2), trial(3, state="pruned"), trial(4, **failed)))
    page = write_page(result)
    assert "Best: trial 2, a$b" in page
    assert "&lt;b&gt;diverged" in page
    assert page.count("<td>pruned</td>") == 1


def test_a_command_states_all_options_that_differ_from_the_defaults() -> None:
    settings = settings_from(
        TrainSettings, archs=("a", "b c"), window=(40.0, 400.0), flip=True, epochs=3, shift=0.0, patience=2
    )
    command = command_from_settings("my data", settings)
    expected = "plurum train 'my data' --arch a --arch 'b c' --window 40.0,400.0 --epochs 3 --patience 2 --shift 0.0"
    assert command == f"{expected} --flip"
