"""An archive in a store is scored into a store, also over a connection that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from plurum.score import Scorer
from plurum.score.destination import Destination, PartCounts
from plurum.score.parts import score_part
from plurum.score.plan import open_plan
from tests.cli.command_line import CommandLine
from tests.client.relay import Relay
from tests.remote.s3_server import IMAGES, S3Server, use_server

s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def relay(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Relay]:
    """A relay to the store, named in the environment, and no open connections of earlier tests."""
    s3fs.S3FileSystem.clear_instance_cache()
    with Relay(s3.address) as one:
        use_server(monkeypatch, one.address, tmp_path / "cache")
        yield one
    s3fs.S3FileSystem.clear_instance_cache()


def score(source: str, out: str, scorer: Scorer, part_rows: int) -> PartCounts:
    """Score a source without Ray."""
    destination = Destination(out)
    plan = open_plan(destination, source, "ensemble", part_rows)
    parts = map(plan.part, range(len(plan.parts)))
    return sum((score_part(part, plan, scorer, destination) for part in parts), PartCounts())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("part-*")) for row in parquet.read_table(file).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiles", "tiles.csv"])
def test_a_broken_connection_loses_and_repeats_no_image(
    name: str, s3: S3Server, relay: Relay, linear_repository: Path, tmp_path: Path
) -> None:
    scorer = Scorer(linear_repository)
    data = s3.folder / "data"
    score(str(data / "tiles"), str(tmp_path / "local"), scorer, 5)
    expected = {Path(row.pop("path")).name: row for row in rows_of(tmp_path / "local")}
    # The first connection with an answer of a few images ends in its middle.
    relay.last_bytes = 10_000
    counts = score(f"s3://data/{name}", "s3://own/answers", scorer, 5)
    scorer.close()
    assert relay.deaths == 1
    assert (counts.images, counts.failed) == (IMAGES, 0)
    found = rows_of(s3.folder / "own" / "answers")
    paths = [row.pop("path") for row in found]
    assert sorted(paths) == sorted(f"s3://data/tiles/{path.parent.name}/{path.name}" for path in data.rglob("*.png"))
    for path, row in zip(paths, found, strict=True):
        same = expected[path.rpartition("/")[2]]
        assert {column: row[column] for column in same} == same
    if name == "tiles.csv":
        assert {row["expected"] for row in found} == {"CE", "LAA"}
    # A second job finds that all parts are there.
    assert score(f"s3://data/{name}", "s3://own/answers", scorer, 5) == counts


@pytest.mark.slow
@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(
    ("source", "out"), [("s3://data/tiles", "out"), ("s3://data/tiles.csv", "out"), ("scans", "s3://own/answers")]
)
def test_wrong_credentials_of_a_job_are_one_line(
    source: str, out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linear_repository: Path, plurum: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    line = plurum.refused("score", source, "--repository", linear_repository, "--out", out)
    assert f"{source if out == 'out' else out}: access is denied (" in line
    assert not list(tmp_path.glob("out/*.parquet"))
