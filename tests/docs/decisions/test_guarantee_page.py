"""Run the commands of docs/guarantee.md on a run with certification patients, and compute its table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plurum.errors import CertificationError
from plurum.export import Budget, ExportSettings, repository_from_run
from plurum.export.settings import BUDGETS
from plurum.promises.risk_control import count_required_patients
from plurum.spec import read_ensemble
from plurum.training import FitSettings, fit_report
from tests.cli.command_line import CommandLine
from tests.docs.pages import blocks, commands, keep_picture, text_of
from tests.sample_runs.decided_run import build_decided_run

PAGE = "guarantee.md"


def without_figures(text: str) -> str:
    """Return the text without the figures that depend on the processor."""
    return re.sub(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.%])", "N", text)


def review_risk(printed: str) -> str:
    return next((line for line in printed.splitlines() if line.startswith("review risk: ")), "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_runs(plurum: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_decided_run(Path("runs/clots"), certification=600)
    said = []
    for command in commands(PAGE):
        said.append(plurum.said(*shlex.split(command)[1:], *(("--draws", 100) if " fit " in command else ())))
        if len(said) == 1:
            keep_picture(run.report_folder / "fit_promise.png", PAGE)
    provisional, certified, at_point, by_class, refused = (block.strip() for block in blocks(PAGE, "text"))
    shown = (provisional, certified, None, at_point, None, by_class, "")
    for printed, line in zip(said, shown, strict=True):
        if line is not None:
            assert without_figures(review_risk(printed)) == without_figures(line)
    assert run.ensemble().promise is not None
    assert read_ensemble(Path("runs/clots/model_repository/ensemble.json")).promise is None
    # What INT8 does to these members exceeds its usual budget.
    loose = Budget(max_difference=1, flips=1, accuracy_loss=1, nll_increase=100, ece_increase=1, review_flips=1)
    settings = ExportSettings(precision="int8", calibration_images=16, budgets={**BUDGETS, "int8": loose})
    fit_report(run.path, FitSettings(risk=0.05, select="all", draws=100))
    with pytest.raises(CertificationError) as caught:
        repository_from_run(run, tmp_path / "out", settings)
    assert CertificationError.exit_code == 1
    start = without_figures(refused.removesuffix("…"))
    assert without_figures(str(caught.value)).startswith(start)


def test_the_table_of_patients_is_computed() -> None:
    page = text_of(PAGE)
    header, *rows = re.findall(r"^\| (promise|\d+ %) \|(.*)\|$", page, flags=re.MULTILINE)
    errors = [int(number) for number in re.findall(r"\d+", header[1])]
    assert [name for name, _ in rows] == ["1 %", "2 %", "5 %", "10 %"]
    for name, cells in rows:
        risk = int(name.removesuffix(" %")) / 100
        stated = [int(cell.replace(",", "")) for cell in cells.split("|")]
        assert stated == [count_required_patients(risk, 0.95, number) for number in errors]


def test_the_budgets_are_those_of_the_code() -> None:
    page = text_of(PAGE)
    assert f"INT8 may change {BUDGETS['int8'].flips:.1%} of labels".replace("%", " %") in page
    assert f"and {BUDGETS['int8'].review_flips:.0%} of reviews".replace("%", " %") in page
