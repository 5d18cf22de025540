"""Printed findings and files of a fit."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from plurum.files import sha256_of
from plurum.run import Run
from plurum.spec import write_metadata
from plurum.training import FitReport, FitSettings, fit_report, write_fit
from plurum.training.learning.plan import RunSettings
from plurum.training.statistics.results import Estimate
from tests.cli.command_line import CommandLine
from tests.sample_runs.decided_run import build_decided_run


@pytest.fixture(scope="module")
def copy(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with two patients of each class in each split."""
    run = Run(Path(shutil.copytree(trained.path, tmp_path_factory.mktemp("findings") / "run")))
    text = (run.data_folder / "items.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    with (run.data_folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow(row | {"patient": f"{row['split']}-{row['label']}-{number % 2}"})
    return run


def ruin(run: Run, name: str) -> None:
    """Make a member confidently wrong: it predicts the next class instead of its own."""
    path = run.member_folder(name) / "checkpoint.safetensors"
    weights = load_file(path)
    head = {key: 8 * value.roll(1, 0) for key, value in weights.items() if key.startswith("head.fc.")}
    assert head
    save_file({**weights, **head}, path)
    file = run.member_folder(name) / "member.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sha256": sha256_of(path)}))


@pytest.fixture(scope="module")
def report(copy: Run) -> FitReport:
    return fit_report(copy.path, FitSettings(select="all"))


@pytest.mark.parametrize(
    ("accuracy", "nll", "outcome"),
    [
        ((0.01, 0.05), (-0.2, 0.1), "better"),
        ((-0.01, 0.05), (-0.2, -0.1), "better"),
        ((-0.01, 0.05), (-0.2, 0.1), "no different"),
        ((-0.05, -0.01), (-0.2, 0.1), "worse"),
        ((-0.01, 0.05), (0.1, 0.2), "worse"),
        ((0.01, 0.05), (0.1, 0.2), "mixed"),
        # Differences below four decimals do not count.
        ((0.0, 0.0), (-4e-5, -1e-5), "no different"),
    ],
)
def test_the_outcome_is_what_is_significant(
    report: FitReport, accuracy: tuple[float, float], nll: tuple[float, float], outcome: str
) -> None:
    differences = {
        name: Estimate(value=sum(ends) / 2, low=ends[0], high=ends[1])
        for name, ends in (("accuracy", accuracy), ("nll", nll))
    }
    assert report.model_copy(update={"differences": differences}).outcome == outcome


def check_pictures(paths: Iterable[Path]) -> None:
    for path in paths:
        with Image.open(path) as picture:
            # The plot is not empty: it has more than two colours.
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 2


def test_files_are_the_report_and_two_pictures(report: FitReport, tmp_path: Path) -> None:
    paths = write_fit(report, tmp_path / "report")
    assert {path.name for path in paths} == {"fit.json", "fit_members.png", "fit_review.png"}
    assert sorted(paths) == sorted((tmp_path / "report").iterdir())
    assert FitReport.model_validate_json((tmp_path / "report" / "fit.json").read_text()) == report
    check_pictures(paths[1:])


def test_a_point_and_a_promise_have_pictures_until_the_next_fit(report: FitReport, tmp_path: Path) -> None:
    run = build_decided_run(tmp_path / "run", certification=200)
    settings = FitSettings(positive="CE", sensitivity=0.9, risk=0.2, select="all", draws=100)
    paths = write_fit(fit_report(run.path, settings), tmp_path / "report")
    assert [path.name for path in paths[3:]] == ["fit_point.png", "fit_promise.png"]
    check_pictures(paths[1:])
    write_fit(report, tmp_path / "report")
    assert not paths[3].exists()
    assert not paths[4].exists()


@pytest.mark.parametrize(
    "options", [(), ("--select", "greedy"), ("--select", "all"), ("--mode", "hard"), ("--mode", "stack")]
)
def test_the_command_takes_a_single_member_too(
    copy: Run, tmp_path: Path, options: tuple[str, ...], plurum: CommandLine
) -> None:
    run = Run(Path(shutil.copytree(copy.path, tmp_path / "run")))
    shutil.rmtree(run.member_folder("test_resnet"))
    started = RunSettings.model_validate_json(run.settings_file.read_bytes())
    alone = started.settings.model_copy(update={"archs": ("test_byobnet",)})
    write_metadata(run.settings_file, started.model_copy(update={"settings": alone}))
    printed = plurum.said("fit", run.path, *options)
    assert run.ensemble().voting.weights == (1.0,)
    assert "the run has a single member, so there is no vote to evaluate" in printed
    assert "patients, by mean: " in printed
    assert " of 8 test patients correct (max: " in printed


def test_the_command_names_a_member_that_is_not_finished(copy: Run, tmp_path: Path, plurum: CommandLine) -> None:
    run = Run(Path(shutil.copytree(copy.path, tmp_path / "run")))
    shutil.rmtree(run.member_folder("test_resnet"))
    printed = plurum.said("fit", run.path, "--draws", "100")
    assert "the run has a single finished member, so there is no vote to evaluate" in printed
    assert (
        "not finished, so left out: test_resnet; run the same plurum train command again to finish it, then fit again\n"
    ) in printed


def test_a_kept_member_with_weight_0_is_not_reported_as_left_out(
    copy: Run, tmp_path: Path, plurum: CommandLine
) -> None:
    """With `all`, a member with a weight of 0 stays, and the table shows 0."""
    run = Run(Path(shutil.copytree(copy.path, tmp_path / "run")))
    ruin(run, "test_byobnet")
    for options, said in (((), "left out"), (("--select", "all"), "0.000")):
        printed = plurum.said("fit", run.path, *options)
        row = next(line for line in printed.splitlines() if "test_byobnet" in line)
        assert said in row
    assert len(run.ensemble().members) == 2
