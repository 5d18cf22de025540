"""Shared fixtures: a fitted run on real images, its model repository, and a server for it.

PyTorch is imported by the fixtures that need it, because that takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.spec import read_ensemble
from tests.cli.command_line import CommandLine
from tests.sample_runs.build_once import build_once

# Tests that took half a second or more; `make test-fast` leaves them out.
LONG_TESTS = Path(__file__).with_name("long_tests.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help=f"leave out the tests that {LONG_TESTS.name} lists")
    parser.addoption("--measure", action="store_true", help=f"write {LONG_TESTS.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        long = set(LONG_TESTS.read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid.partition("[")[0] in long])
        items[:] = [item for item in items if item.nodeid.partition("[")[0] not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--measure"):
        reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("", ())]
        long = {report.nodeid.partition("[")[0] for report in reports if report.duration >= 0.5}
        LONG_TESTS.write_text("".join(f"{name}\n" for name in sorted(long)), encoding="utf-8")


@pytest.fixture
def plurum(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return a runner of the command line in this process."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def fresh_run(run: Run, tmp_path: Path) -> Run:
    """Copy of the run that a test may modify."""
    return Run(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run, shared by all tests and read-only."""
    from tests.sample_runs.fitted_run import build_run

    return Run(build_once(tmp_path_factory, "run", build_run))


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model repository of the run, shared by all tests and read-only."""
    from plurum.export import ExportSettings, repository_from_run

    settings = ExportSettings(max_batch_size=8)
    return build_once(tmp_path_factory, "model_repository", lambda out: repository_from_run(run, out, settings))


@pytest.fixture(scope="session")
def fused(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That repository with `ensemble_fused`, shared by all tests and read-only."""
    from plurum.export import repository_from_onnx

    ensemble = read_ensemble(repository / "ensemble.json")
    graphs = {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}
    return build_once(tmp_path_factory, "fused", lambda out: repository_from_onnx(ensemble, graphs, out, 8, fused=True))


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Server]:
    """Running server for that repository, shared by all tests."""
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server
