"""Releases change under load: no question is lost, no answer is of two releases, nothing broken becomes public."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from plurum.benchmarks.claims.rollouts import ReleaseServer, ReleaseTally, probabilities_of, release_clients
from plurum.client import EnsembleClient
from plurum.errors import OutputError, RepositoryError, ServerError
from plurum.export import ExportSettings
from plurum.export.graphs.runtimes import Artefact
from plurum.export.repository.assembly import record_predictions
from plurum.repository.listing import listing_of
from plurum.repository.probes import PROBES_FILE, read_recorded_probes
from plurum.run import Run
from plurum.serving import Server
from plurum.serving.releases.rehearsal import check_artefacts, rehearse
from plurum.serving.releases.releases import Releases, ReleaseState, RolloutOrder, RolloutReport
from plurum.serving.releases.rollout import Rollout
from plurum.serving.triton.metrics import metrics_at
from plurum.serving.triton.probe import Probe
from plurum.serving.triton.settings import ReleaseTrial
from plurum.spec import read_ensemble, write_metadata
from tests.serving.servers import changed_repository


@pytest.fixture(scope="module")
def other(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another release: every member's last bias is another, so that each answers otherwise."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("other") / "model_repository")
    _other_biases(folder)
    ensemble = read_ensemble(folder / "ensemble.json")
    graphs = [
        Artefact(one.name, "fp32", "onnxruntime", folder / one.name / "1" / "model.onnx") for one in ensemble.members
    ]
    write_metadata(folder / PROBES_FILE, record_predictions(ensemble, graphs, ExportSettings()))
    _listed(folder)
    return folder


def _other_biases(folder: Path) -> None:
    for path in folder.glob("*/1/model.onnx"):
        graph = onnx.load(path)
        bias = next(one for one in graph.graph.initializer if list(one.dims) == [10])
        bias.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(bias) + np.arange(10, dtype=np.float32) / 10, bias.name)
        )
        onnx.save(graph, path)


def _listed(folder: Path) -> None:
    """List the files anew, as if what was changed had been exported so."""
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(manifest | {"files": listing_of(folder)}))


@pytest.fixture(scope="module")
def pixels(run: Run) -> npt.NDArray[np.uint8]:
    return np.array(run.pixels()[40:43])


@pytest.fixture(scope="module")
def expected(repository: Path, other: Path, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    return {"first": probabilities_of(repository, pixels), "second": probabilities_of(other, pixels)}


def release_at(url: str, pixels: npt.NDArray[np.uint8]) -> str | None:
    """What the client says of who answers, over both protocols' way of telling."""
    with EnsembleClient(url) as client:
        (answer,) = client.predict(pixels[:1])
    return answer.release


def _corrupt(folder: Path) -> None:
    path = next(folder.glob("*/1/model.onnx"))
    path.write_bytes(path.read_bytes()[:-100])


def _cut_short_with_a_right_hash(folder: Path) -> None:
    _corrupt(folder)
    _listed(folder)


def _compute_otherwise(folder: Path) -> None:
    _other_biases(folder)
    _listed(folder)


def _break_the_voter(folder: Path) -> None:
    (folder / "voter" / "1" / "model.py").write_text("raise RuntimeError('broken voter')\n")
    _listed(folder)


def _vote_otherwise(folder: Path) -> None:
    path = folder / "voter" / "1" / "ensemble.json"
    metadata = json.loads(path.read_text())
    metadata["voting"]["weights"] = metadata["voting"]["weights"][::-1]
    path.write_text(json.dumps(metadata))
    _listed(folder)


def _change_the_voter(folder: Path) -> None:
    with (folder / "voter" / "1" / "model.py").open("a") as file:
        file.write("\n")


def _forget_the_voters_rule(folder: Path) -> None:
    (folder / "voter" / "1" / "voting" / "decisions.py").unlink()


def _add_a_version(folder: Path) -> None:
    shutil.copytree(folder / "voter" / "1", folder / "voter" / "2")


def _forget_the_answers(folder: Path) -> None:
    (folder / PROBES_FILE).unlink()
    _listed(folder)


def _fail_the_gate(folder: Path) -> None:
    report = json.loads((folder / "parity.json").read_text())
    report["artefacts"][0]["faults"] = ["probabilities differ by up to 0.5 (at most 0.001)"]
    (folder / "parity.json").write_text(json.dumps(report))


def _other_classes(folder: Path) -> None:
    path = folder / "ensemble.json"
    path.write_text(path.read_text().replace('"nine"', '"neuf"'))


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (_corrupt, "1/model.onnx is not the file that was exported"),
    (_change_the_voter, "voter/1/model.py is not the file that was exported"),
    (_forget_the_voters_rule, "voter/1/voting/decisions.py is missing"),
    (_add_a_version, " was not exported"),
    (_cut_short_with_a_right_hash, "Load model from"),
    (_compute_otherwise, "expected probabilities within"),
    (_break_the_voter, "broken voter"),
    (_vote_otherwise, "expected probabilities within"),
    (_forget_the_answers, "questions.json can't be read"),
    (_fail_the_gate, "the export's gate did not pass"),
    (_other_classes, "classes: expected"),
]


@pytest.mark.triton
def test_there_and_back_under_load_then_only_what_is_whole_then_after_a_restart(
    repository: Path,
    other: Path,
    pixels: npt.NDArray[np.uint8],
    expected: dict[str, npt.NDArray[np.float32]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "live"
    with ReleaseServer(folder, repository) as live:
        with release_clients(live.urls["http"], pixels, expected, clients=2) as clients:
            done = live.rollout(other)
            assert done.returncode == 0, done.stderr
            first, second = (json.loads(done.stdout)[name] for name in ("previous", "current"))
            for line in (
                f"{second} is loaded beside {first}",
                f"{second} predicts what it predicted at export",
                "is public",
            ):
                assert line in done.stderr
            assert {release_at(live.urls[name], pixels) for name in ("grpc", "http")} == {second}
            back = live.rollout("--back")
            assert {release_at(live.urls[name], pixels) for name in ("grpc", "http")} == {first}
            assert json.loads(back.stdout) == {"current": first, "previous": second, "trial": None}
            assert f"{second} is still loaded" not in back.stderr
            assert json.loads(live.rollout(other).stdout)["current"] == second
            for spoil, reason in BROKEN:
                broken = shutil.copytree(repository, tmp_path / spoil.__name__)
                spoil(broken)
                refused = live.rollout(broken)
                assert refused.returncode == 2, spoil
                (line,) = [line for line in refused.stderr.splitlines() if line.startswith("plurum: ")]
                assert reason in line
                assert line.endswith("The public release is unchanged.")
                assert {release_at(live.urls[name], pixels) for name in ("grpc", "http")} == {second}, spoil
            assert json.loads(live.rollout().stdout)["current"] == second
        assert clients.failures == []
        assert set(clients.counts) == {"first", "second"}
        assert "not ready" not in live.log()
    with (
        ReleaseServer(folder, None) as live,
        release_clients(live.urls["http"], pixels, expected, clients=1) as clients,
    ):
        back = live.rollout("--back")
        assert json.loads(back.stdout)["current"] == first
        assert f"{first} is loaded beside {second}" in back.stderr
    assert clients.failures == []
    assert clients.counts["second"] > 0
    away = live.rollout(other)
    assert away.returncode == 2
    assert "no running server uses" in away.stderr


@pytest.mark.triton
def test_a_release_on_trial(
    repository: Path,
    other: Path,
    pixels: npt.NDArray[np.uint8],
    expected: dict[str, npt.NDArray[np.float32]],
    tmp_path: Path,
) -> None:
    failing = changed_repository(other, tmp_path, _FAILS_LATER)
    _listed(failing)
    folder = tmp_path / "live"
    with ReleaseServer(folder, repository) as live:
        first = json.loads(live.rollout().stdout)["current"]
        with release_clients(live.urls["http"], pixels, expected, clients=2) as clients:
            state = json.loads(live.rollout(other, "--percent", 50).stdout)
            second = state["trial"]["release"]
            assert state == {
                "current": first,
                "previous": None,
                "trial": {"release": second, "percent": 50, "shadow": False},
            }
            _wait_for(clients, 40)
            # A front model can't say which of the two has answered.
            assert release_at(live.urls["http"], pixels) is None
        assert clients.failures == []
        assert set(clients.counts) == {"first", "second"}
        with release_clients(live.urls["http"], pixels, expected, clients=2) as clients:
            assert json.loads(live.rollout(other, "--shadow").stdout)["trial"]["shadow"]
            clients.counts.clear()
            _wait_for(clients, 40)
        assert clients.failures == []
        assert set(clients.counts) == {"first"}
        samples = metrics_at(live.urls["metrics"])
        compared = samples['plurum_trial_compared_total{model="ensemble_pixels"}']
        assert compared >= 40
        assert 0 <= samples['plurum_trial_other_labels_total{model="ensemble_pixels"}'] <= compared
        # Models whose processes end because a release comes or goes are not taken for dead.
        assert "not ready" not in live.log()
    # A new server takes the trial up again.
    with (
        ReleaseServer(folder, None) as live,
        release_clients(live.urls["http"], pixels, expected, clients=2) as clients,
    ):
        deadline = time.monotonic() + 60
        while (
            "plurum_trial_compared_total" not in str(metrics_at(live.urls["metrics"])) and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        assert json.loads(live.rollout("--back").stdout) == {"current": first, "previous": None, "trial": None}
        state = json.loads(live.rollout(failing, "--percent", 50).stdout)
        _wait_for(clients, 40)
        failures = metrics_at(live.urls["metrics"])['plurum_trial_failures_total{model="ensemble_pixels"}']
        assert failures > 0
        assert json.loads(live.rollout(other).stdout)["current"] == second
        assert "not ready" not in live.log()
    assert clients.failures == []
    assert "mixed" not in clients.counts


# Well while it is rehearsed (under the server's own request id), and not when others ask.
_FAILS_LATER = """

def _planted(execute):
    def faulty(self, requests):
        if any(request.request_id() != PROBE_ID for request in requests):
            raise RuntimeError("planted")
        return execute(self, requests)

    return faulty


TritonPythonModel.execute = _planted(TritonPythonModel.execute)
"""


def _wait_for(clients: ReleaseTally, answers: int) -> None:
    """Wait until so many more have come."""
    start, deadline = sum(clients.counts.values()), time.monotonic() + 60
    while sum(clients.counts.values()) < start + answers and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_release_is_kept_as_it_was_and_once(repository: Path, tmp_path: Path) -> None:
    releases = Releases(tmp_path / "live")
    copy = shutil.copytree(repository, tmp_path / "copy")
    tag = releases.add(copy)
    assert releases.add(repository) == tag
    (copy / "parity.json").write_text("{}")
    assert releases.add(copy) != tag
    check_artefacts(releases.path(tag))
    with pytest.raises(RepositoryError, match=r"expected a model repository with an ensemble\.json"):
        releases.add(tmp_path)
    (tmp_path / "live" / "thesis.odt").touch()
    with pytest.raises(OutputError, match=r"got one that holds thesis\.odt"):
        releases.add(repository)


def test_one_server_holds_the_folder(tmp_path: Path) -> None:
    releases, second = Releases(tmp_path / "live"), Releases(tmp_path / "live")
    assert not releases.is_served()
    releases.lock()
    assert second.is_served()
    with pytest.raises(OutputError, match="got one in use"):
        second.lock()
    releases.unlock()
    assert not second.is_served()


def test_orders_are_taken_once_and_what_is_written_is_read(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert releases.take_order() is None
    releases.place_order(RolloutOrder(number=1, release="ab"))
    assert releases.take_order() == RolloutOrder(number=1, release="ab")
    assert releases.take_order() is None
    (tmp_path / "order.json").write_text("{")
    with pytest.raises(OutputError, match=r"order\.json can't be read"):
        releases.take_order()
    assert releases.take_order() is None
    releases.write_state(ReleaseState(current="ab"))
    assert releases.state() == ReleaseState(current="ab")
    releases.write_report(RolloutReport(number=1, lines=("x",)))
    assert releases.read_report() == RolloutReport(number=1, lines=("x",))
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(OutputError, match=r"state\.json can't be read"):
        releases.state()


class FakeServer:
    """A server with both releases loaded.

    Attributes:
        found: The state that it finds written down when it is told to change.
    """

    def __init__(self, releases: Releases, error: Exception | None = None) -> None:
        self.releases, self.error, self.found = releases, error, [releases.state()]

    def has_release(self, _tag: str) -> bool:
        return True

    def publish(self, tag: str, _timeout_s: float) -> None:
        self.found.append(self.releases.state())
        if self.error is not None and tag != "first":
            raise self.error

    def put_on_trial(self, trial: ReleaseTrial, _current: str, timeout_s: float) -> None:
        self.publish(trial.release, timeout_s)


def carried_out(
    releases: Releases, order: RolloutOrder, error: Exception | None = None
) -> tuple[RolloutReport, FakeServer]:
    server = FakeServer(releases, error)
    Rollout(cast("Server", server), releases, order).run()
    report = releases.read_report()
    assert report is not None
    return report, server


@pytest.fixture
def two(repository: Path, tmp_path: Path) -> Releases:
    """Two releases, the first of them public."""
    releases = Releases(tmp_path / "live")
    for name in ("first", "second"):
        shutil.copytree(repository, releases.path(name))
    releases.write_state(ReleaseState(current="first"))
    return releases


def test_a_server_that_starts_anew_meanwhile_begins_with_what_is_becoming_public(two: Releases) -> None:
    report, server = carried_out(two, RolloutOrder(number=1, release="second"))
    assert (report.outcome, report.lines[-2:]) == ("done", ("second is public", "done"))
    assert server.found[1] == ReleaseState(current="second", previous="first") == two.state()


@pytest.mark.parametrize("percent", [None, 5])
def test_what_fails_leaves_the_state_as_it_was(two: Releases, percent: float | None) -> None:
    report, server = carried_out(two, RolloutOrder(number=1, release="second", percent=percent), ServerError("planted"))
    assert (report.outcome, report.lines[-1]) == ("refused", "planted")
    assert two.state() == server.found[-1] == ReleaseState(current="first")


def test_the_outcome_is_told_whatever_happens(two: Releases) -> None:
    report, _ = carried_out(two, RolloutOrder(number=7, release="second"), RuntimeError("planted"))
    assert (report.number, report.outcome) == (7, "refused")
    assert report.lines[-1] == "unexpected error: RuntimeError('planted')"


def test_a_share_is_answered_by_members_of_the_same_names_alone(two: Releases) -> None:
    path = two.path("second") / "ensemble.json"
    path.write_text(path.read_text().replace('"name": "resnet10t"', '"name": "another"'))
    report, _ = carried_out(two, RolloutOrder(number=1, release="second", percent=5))
    assert report.outcome == "refused"
    assert report.lines[-1].startswith("members: expected resnet10t, regnetx")
    report, _ = carried_out(two, RolloutOrder(number=2, release="second", shadow=True))
    assert report.outcome == "done"


def test_plans_may_come_later_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(repository, tmp_path / "gpu")
    plan = folder / "resnet10t" / "1" / "model.plan"
    plan.write_bytes(b"built here")
    with pytest.raises(RepositoryError, match=r"resnet10t/1/model\.plan was not exported"):
        check_artefacts(folder)
    manifest = json.loads((folder / "export.json").read_text())
    artefacts = [one | {"backend": "tensorrt"} for one in manifest["artefacts"]]
    (folder / "export.json").write_text(json.dumps(manifest | {"artefacts": artefacts}))
    check_artefacts(folder)


class FakeProbe:
    """A loaded release whose ensemble answers what it is told to."""

    chains = ("ensemble",)

    def __init__(self, answers: npt.NDArray[np.float64]) -> None:
        self._answers = answers

    def predict(self, *_: object) -> npt.NDArray[np.float64]:
        return self._answers


def test_a_release_answers_as_was_recorded_or_is_refused(repository: Path, tmp_path: Path) -> None:
    ensemble, recorded = read_ensemble(repository / "ensemble.json"), read_recorded_probes(repository)
    answers = np.array(recorded.probabilities)
    assert recorded.tolerance == 1e-3
    assert rehearse(cast("Probe", FakeProbe(answers + 9e-4)), repository, ensemble, 1) == pytest.approx(9e-4)
    for wrong in (answers + 2e-3, np.full_like(answers, np.nan)):
        with pytest.raises(RepositoryError, match="expected probabilities within"):
            rehearse(cast("Probe", FakeProbe(wrong)), repository, ensemble, 1)
    other = shutil.copytree(repository, tmp_path / "other")
    write_metadata(other / PROBES_FILE, recorded.model_copy(update={"probabilities": recorded.probabilities[:2]}))
    with pytest.raises(RepositoryError, match=r"expected shape \(4, 10\), got \(2, 10\)"):
        rehearse(cast("Probe", FakeProbe(answers)), other, ensemble, 1)
