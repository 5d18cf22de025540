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

# The modules that take longest come first, so that all processes have work until the end.
FIRST = ("docs/test_readme.py", "releases/test_rollout.py", "docs/test_comparing_page.py", "deploy/test_fleet.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help=f"leave out the tests that {LONG_TESTS.name} lists")
    parser.addoption("--measure", action="store_true", help=f"write {LONG_TESTS.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(FIRST))
    if config.getoption("--fast"):
        long = set(LONG_TESTS.read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid.partition("[")[0] in long])
        items[:] = [item for item in items if item.nodeid.partition("[")[0] not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--measure"):
        reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("", ())]
        long = {report.nodeid.partition("[")[0] for report in reports if report.duration >= 0.5}
        LONG_TESTS.write_text("".join(f"{name}\n" for name in sorted(long)), encoding="utf-8")


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all exports trace each module once."""
    from tests.sample_runs.traced_graphs import traced_once

    with traced_once(tmp_path_factory):
        yield


@pytest.fixture(scope="session", autouse=True)
def slow_exports(request: pytest.FixtureRequest) -> None:
    """Use `traced_once` where slow tests run; others, which may need no PyTorch, get it with `run`."""
    if any(item.get_closest_marker("slow") for item in request.session.items):
        request.getfixturevalue("traced_once")


@pytest.fixture
def plurum(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return a runner of the command line in this process."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def fresh_run(run: Run, tmp_path: Path) -> Run:
    """Copy of the run that a test may modify."""
    return Run(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run, shared by all tests and read-only."""
    request.getfixturevalue("traced_once")
    from tests.sample_runs.fitted_run import build_run

    return Run(build_once(tmp_path_factory, "run", build_run))


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model repository of the run in the form of a chain, shared by all tests and read-only."""
    from plurum.export import ExportSettings, repository_from_run

    settings = ExportSettings(max_batch_size=8, form="chain")
    return build_once(tmp_path_factory, "model_repository", lambda out: repository_from_run(run, out, settings))


@pytest.fixture(scope="session")
def fused(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That repository with `ensemble_fused`, shared by all tests and read-only."""
    from plurum.export import repository_from_onnx

    ensemble = read_ensemble(repository / "ensemble.json")
    graphs = {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}

    def write(out: Path) -> None:
        repository_from_onnx(ensemble, graphs, out, 8, form="chain", fused=True)

    return build_once(tmp_path_factory, "fused", write)


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Server]:
    """Running server for that repository, shared by all tests."""
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def _copy_with_detectors(run: Run, folder: Path, detecting: tuple[bool, ...]) -> None:
    from tests.sample_runs.detected_run import add_detectors

    add_detectors(Run(shutil.copytree(run.path, folder)), detecting)


@pytest.fixture(scope="session")
def detected(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run whose members all have a detector, shared by all tests and read-only."""
    return Run(build_once(tmp_path_factory, "detected", lambda out: _copy_with_detectors(run, out, (True, True))))


@pytest.fixture(scope="session")
def half_detected(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fitted run of which only the second member has a detector, shared by all tests and read-only."""
    return Run(build_once(tmp_path_factory, "half_detected", lambda out: _copy_with_detectors(run, out, (False, True))))


@pytest.fixture(scope="session")
def detecting_repository(detected: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 repository of the run whose members all have a detector, with `ensemble_fused`."""
    from plurum.export import ExportSettings, repository_from_run

    settings = ExportSettings(max_batch_size=8, form="chain", fused=True)
    return build_once(tmp_path_factory, "detecting", lambda out: repository_from_run(detected, out, settings))


@pytest.fixture(scope="session")
def int8_repositories(half_detected: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """INT8 repositories of the run of which one member has a detector, with `ensemble_fused`, by backend."""
    from plurum.export import Budget, ExportSettings, repository_from_run
    from plurum.export.settings import EXECUTIONS, Backend, Execution

    # Members that have hardly learnt differ by more than trained ones.
    anything = Budget(
        max_difference=1, flips=1, accuracy_loss=1, nll_increase=9, ece_increase=1, review_flips=1, outlier_change=0.15
    )
    settings = ExportSettings(max_batch_size=8, form="chain", fused=True, precision="int8", budgets={"int8": anything})

    def build(backend: Backend) -> Path:
        def export(out: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(EXECUTIONS, "cpu", (Execution("int8", backend),))
                repository_from_run(half_detected, out, settings)

        return build_once(tmp_path_factory, f"detecting_int8_{backend}", export)

    return {"onnxruntime": build("onnxruntime"), "openvino": build("openvino")}


@pytest.fixture(scope="session")
def linear_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository of a cascade of linear members, with its graphs by stage; read-only."""
    from plurum.export import repository_from_onnx
    from tests.cascades.linear_cascade import ENSEMBLES, write_members

    ensemble = ENSEMBLES["three stages with detectors"]

    def build(folder: Path) -> None:
        folder.mkdir()
        repository_from_onnx(ensemble, write_members(folder, ensemble), folder / "repository", 8)

    return build_once(tmp_path_factory, "linear", build) / "repository"
