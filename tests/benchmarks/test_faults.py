"""A watched server under load while one of its processes exits, hangs or is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from plurum.benchmarks.claims.faults import FAULTS, FaultyServer, faults
from plurum.client import EnsembleClient
from tests.benchmarks.programs import run_benchmark

# The second of a member meets processes of the version before, which live on for a while.
_CHOSEN = ("voter killed", "member killed", "member stopped", "voter hangs", "Triton killed")


@pytest.mark.triton
def test_each_is_noticed_and_healed_and_nobody_hangs(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(faults, repository=repository, rounds=1, pause=1.0, fault=list(_CHOSEN))
    assert [one["fault"] for one in report["rounds"]] == list(_CHOSEN)
    for one in report["rounds"]:
        assert 0 < one["noticed_s"] < 10, one
        assert one["noticed_s"] < one["healed_s"] < 20, one
        assert one["longest_s"] < report["deadline_s"] + 2, one
        assert one["answered"] > 0
    # Killing an instance without a request fails none.
    assert sum(one["failed"] for one in report["rounds"]) > 0
    held = report["held_bytes"]
    assert held["after"]["shared_memory"] <= held["before"]["shared_memory"]
    assert held["after"]["memory"] < 1.5 * held["before"]["memory"]


@pytest.mark.triton
def test_an_error_of_one_request_heals_nothing(repository: Path, tmp_path: Path) -> None:
    import tritonclient.http

    with FaultyServer(repository, tmp_path) as watched:
        tensor = tritonclient.http.InferInput("PIXELS", [1, *watched.pixels.shape], "UINT8")
        tensor.set_data_from_numpy(watched.pixels[None])
        with (
            tritonclient.http.InferenceServerClient(watched.urls["http"].removeprefix("http://")) as client,
            pytest.raises(InferenceServerException, match="planted"),
        ):
            client.infer("ensemble_pixels", [tensor], request_id="raise")
        assert watched.is_ready()
        with EnsembleClient(watched.urls["http"]) as other:
            assert len(other.predict([watched.pixels])) == 1
        # A warning about every repository without a manifest.
        (line,) = watched.log().splitlines()
        assert "no export.json" in line


def test_an_unknown_fault_is_named() -> None:
    done = run_benchmark("claims.faults", "--fault", "sunspots", code=2)
    assert done.stderr == f"error: --fault: expected one of {', '.join(FAULTS)}, got 'sunspots'.\n"
