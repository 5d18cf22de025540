"""A fitted run, whose vote teaches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plurum.run import Run
from plurum.training import FitSettings, fit_run
from tests.sample_runs.build_once import build_once


@pytest.fixture(scope="session")
def teacher(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a fitted run of two members shared by all tests, read-only."""

    def build(out: Path) -> None:
        shutil.copytree(trained.path, out)
        fit_run(out, FitSettings(no_outliers=True, select="all", draws=100))

    return Run(build_once(tmp_path_factory, "teacher", build))
