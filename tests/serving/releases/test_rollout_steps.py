"""Steps of a rollout without a server: the folder of releases, orders, outcomes and the rehearsal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from plurum.errors import OutputError, RepositoryError, ServerError
from plurum.repository.probes import PROBES_FILE, read_recorded_probes
from plurum.serving import Server
from plurum.serving.releases.rehearsal import check_artefacts, rehearse
from plurum.serving.releases.releases import Releases, ReleaseState, RolloutOrder, RolloutReport
from plurum.serving.releases.rollout import Rollout
from plurum.serving.triton.probe import Probe
from plurum.serving.triton.settings import ReleaseTrial
from plurum.spec import read_ensemble, write_metadata


def test_a_release_is_copied_once_and_a_changed_one_becomes_another(repository: Path, tmp_path: Path) -> None:
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


def test_only_one_server_uses_a_folder_of_releases(tmp_path: Path) -> None:
    releases, second = Releases(tmp_path / "live"), Releases(tmp_path / "live")
    assert not releases.is_served()
    releases.lock()
    assert second.is_served()
    with pytest.raises(OutputError, match="got one in use"):
        second.lock()
    releases.unlock()
    assert not second.is_served()


def test_orders_are_taken_once_and_states_and_reports_are_read_back(tmp_path: Path) -> None:
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
        self.models = self

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


def test_the_new_state_is_written_before_the_release_becomes_public(two: Releases) -> None:
    report, server = carried_out(two, RolloutOrder(number=1, release="second"))
    assert (report.outcome, report.lines[-2:]) == ("done", ("second is public", "done"))
    assert server.found[1] == ReleaseState(current="second", previous="first") == two.state()


@pytest.mark.parametrize("percent", [None, 5])
def test_a_failed_rollout_restores_the_state(two: Releases, percent: float | None) -> None:
    report, server = carried_out(two, RolloutOrder(number=1, release="second", percent=percent), ServerError("planted"))
    assert (report.outcome, report.lines[-1]) == ("refused", "planted")
    assert two.state() == server.found[-1] == ReleaseState(current="first")


def test_an_unexpected_error_is_reported(two: Releases) -> None:
    report, _ = carried_out(two, RolloutOrder(number=7, release="second"), RuntimeError("planted"))
    assert (report.number, report.outcome) == (7, "refused")
    assert report.lines[-1] == "unexpected error: RuntimeError('planted')"


def test_a_percentage_needs_members_of_the_same_names(two: Releases) -> None:
    path = two.path("second") / "ensemble.json"
    path.write_text(path.read_text().replace('"name": "resnet10t"', '"name": "another"'))
    report, _ = carried_out(two, RolloutOrder(number=1, release="second", percent=5))
    assert report.outcome == "refused"
    assert report.lines[-1].startswith("members: expected resnet10t, regnetx")
    report, _ = carried_out(two, RolloutOrder(number=2, release="second", shadow=True))
    assert report.outcome == "done"


def test_only_plans_may_be_added_after_the_export(repository: Path, tmp_path: Path) -> None:
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


def test_a_rehearsal_refuses_predictions_that_differ_from_the_recorded_ones(repository: Path, tmp_path: Path) -> None:
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
