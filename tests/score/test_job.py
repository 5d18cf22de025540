from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.errors import OutputError, RepositoryError, ServerError, SettingsError
from plurum.score import ScoreJob, ScoreOptions, open_job
from plurum.score.destination import Destination, PartCounts
from plurum.score.job import _PartScorer
from plurum.score.plan import Plan


class FewRows:
    """The part of Ray that a job needs: the workers run here, and return the rows that they have."""

    def __init__(self, worker: _PartScorer) -> None:
        self.data, self.worker, self.rows = self, worker, list[dict[str, Any]]()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: object) -> object:
        return value

    def ActorPoolStrategy(self, *, min_size: int, max_size: int) -> tuple[int, int]:  # noqa: N802 - Ray's name
        return min_size, max_size

    def from_items(self, items: list[dict[str, int]], **_: object) -> FewRows:
        self.rows = list(items)
        return self

    def map_batches(self, _: object, *, compute: tuple[int, int], **__: object) -> FewRows:
        # A fixed pool waits for ever for the cores of a lost node.
        assert compute == (1, 2)
        return self

    def iter_rows(self) -> Any:
        for row in self.rows:
            found = self.worker({"part": np.array([row["part"]])})
            yield {name: values[0] for name, values in found.items()}


class BrokenScorer:
    def schema(self, _: object) -> Any:
        raise ServerError("no server responds")


def job_of(tmp_path: Path, parts: list[list[int]]) -> tuple[ScoreJob, FewRows]:
    plan = Plan("scans", "ensemble", ["scans.parquet"], {"path": "path"}, parts)
    destination, options = Destination(str(tmp_path)), ScoreOptions()
    worker = _PartScorer(plan, str(tmp_path), options)
    served: Any = None
    worker._ready = plan, destination, BrokenScorer()  # type: ignore[assignment]
    return ScoreJob(plan, destination, served, options, PartCounts(), list(range(len(parts)))), FewRows(worker)


def test_the_error_of_a_worker_is_the_jobs(tmp_path: Path) -> None:
    job, ray = job_of(tmp_path, [[0, 0, 2], [0, 2, 4], [0, 4, 6]])
    with pytest.raises(ServerError, match=r"^no server responds$"):
        list(job.run(ray))
    assert not list(tmp_path.glob("*.parquet"))


def test_missing_rows_are_an_error(tmp_path: Path) -> None:
    job, ray = job_of(tmp_path, [[0, 0, 2]])
    job.left = []
    with pytest.raises(OutputError, match=r"expected 2 rows, got 0\. Start again with --fresh"):
        list(job.run(ray))


def test_bad_options_are_named_before_ray_starts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, error, reason in (
        (ScoreOptions(), SettingsError, "expected either --repository or --url"),
        (ScoreOptions(tmp_path / "none"), RepositoryError, "expected a model repository folder, got nothing"),
        (ScoreOptions(urls=("127.0.0.1:1",), timeout_s=0.1), ServerError, "127.0.0.1:1"),
    ):
        with pytest.raises(error, match=reason), open_job(str(tmp_path), str(out), options):
            pass
    assert not out.exists()
