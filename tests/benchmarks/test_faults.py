"""A watched server under load, with something in it dying, hanging, stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from plurum.benchmarks.claims.faults import FAULTS, Watched
from plurum.client import EnsembleClient

# The second of a member meets processes of the version before, which live on for a while.
_CHOSEN = ("voter killed", "member killed", "member stopped", "voter hangs", "Triton killed")


def faults(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plurum.benchmarks.claims.faults", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.triton
def test_each_is_noticed_and_healed_and_nobody_hangs(repository: Path) -> None:
    chosen = [word for name in _CHOSEN for word in ("--fault", name)]
    done = faults("--repository", repository, "--rounds", 1, "--pause", 1, *chosen)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [one["fault"] for one in report["rounds"]] == list(_CHOSEN)
    for one in report["rounds"]:
        assert 0 < one["noticed_s"] < 10, one
        assert one["noticed_s"] < one["healed_s"] < 20, one
        assert one["longest_s"] < report["deadline_s"] + 2, one
        assert one["answered"] > 0
    # An instance that had no question when it was killed spoils none.
    assert sum(one["failed"] for one in report["rounds"]) > 0
    held = report["held_bytes"]
    assert held["after"]["shared_memory"] <= held["before"]["shared_memory"]
    assert held["after"]["memory"] < 1.5 * held["before"]["memory"]


@pytest.mark.triton
def test_an_error_of_one_request_heals_nothing(repository: Path, tmp_path: Path) -> None:
    import tritonclient.http

    with Watched(repository, tmp_path) as watched:
        tensor = tritonclient.http.InferInput("PIXELS", [1, *watched.pixels.shape], "UINT8")
        tensor.set_data_from_numpy(watched.pixels[None])
        with (
            tritonclient.http.InferenceServerClient(watched.urls["http"].removeprefix("http://")) as client,
            pytest.raises(InferenceServerException, match="planted"),
        ):
            client.infer("ensemble_pixels", [tensor], request_id="raise")
        assert watched.is_ready()
        with EnsembleClient(watched.urls["http"]) as asker:
            assert len(asker.predict([watched.pixels])) == 1
    # Said of every repository whose files were not those that were exported.
    (line,) = watched.log.read_text().splitlines()
    assert "no export.json" in line


def test_an_unknown_fault_is_named() -> None:
    done = faults("--fault", "sunspots")
    assert done.returncode == 2
    assert "'sunspots' is none of" in done.stderr
    assert "voter killed" in " ".join(FAULTS)
