from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import pyarrow as pa
import pytest
from pyarrow import parquet

from plurum.errors import DataError
from plurum.score.destination import Destination, PartCounts
from plurum.score.parts import score_part
from plurum.score.plan import Part, Plan
from plurum.score.scorer import Scorer


class LengthScorer:
    """Labels an image by its number of bytes; an empty one has no prediction."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def schema(self, subjects: Iterable[str]) -> Any:
        return pa.schema([*((name, pa.string()) for name in subjects), ("label", pa.string()), ("review", pa.bool_())])

    def tables(self, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Iterator[Any]:
        yield from map(self._table, batches)

    def _table(self, batch: Mapping[str, npt.NDArray[Any]]) -> Any:
        self.rows.append(len(batch["bytes"]))
        labels = [str(len(one)) if one else None for one in batch["bytes"]]
        columns = [list(batch["path"]), list(batch["label"]), labels, [one == "1" if one else None for one in labels]]
        return pa.table(columns, schema=self.schema(["path", "expected"]))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """300 images in row groups of 70; each is as long as its row's last digit."""
    contents = [b"x" * (row % 10) or None for row in range(300)]
    table = pa.table({"bytes": contents, "label": [str(row % 5) for row in range(300)]})
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=70)
    return tmp_path / "images.parquet"


def plan_of(images: Path) -> Plan:
    columns = {name: name for name in ("bytes", "label")}
    return Plan(str(images), "ensemble", [str(images)], columns, [[0, 0, 65], [0, 65, 215], [0, 215, 300]])


def test_a_part_has_its_rows_once_and_in_order(images: Path, tmp_path: Path) -> None:
    plan, scorer, out = plan_of(images), LengthScorer(), Destination(str(tmp_path / "out"))
    counts = [score_part(plan.part(number), plan, cast("Scorer", scorer), out) for number in range(3)]
    assert max(scorer.rows) <= 64
    assert out.parts() == [f"part-00000{number}.parquet" for number in range(3)]
    table = pa.concat_tables(parquet.read_table(tmp_path / "out" / name) for name in out.parts())
    assert table.column("path").to_pylist() == [f"{images}#row={row}" for row in range(300)]
    assert table.column("label").to_pylist() == [str(row % 10) if row % 10 else None for row in range(300)]
    total = sum(counts, PartCounts())
    assert total == PartCounts(images=300, review=30, failed=30, labelled=270, correct=120)
    assert [out.counts(name) for name in out.parts()] == counts


def test_a_part_that_is_there_is_not_scored_again(images: Path, tmp_path: Path) -> None:
    plan, scorer, out = plan_of(images), LengthScorer(), Destination(str(tmp_path / "out"))
    first = score_part(plan.part(0), plan, cast("Scorer", scorer), out)
    before, calls = (tmp_path / "out" / "part-000000.parquet").stat(), len(scorer.rows)
    assert score_part(plan.part(0), plan, cast("Scorer", scorer), out) == first
    assert (tmp_path / "out" / "part-000000.parquet").stat() == before
    assert len(scorer.rows) == calls


def test_half_a_file_is_no_part(images: Path, tmp_path: Path) -> None:
    plan, out = plan_of(images), Destination(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"PAR1")
    assert out.counts("part-000000.parquet") is None
    assert score_part(plan.part(0), plan, cast("Scorer", LengthScorer()), out).images == 65


def test_results_go_to_an_address_too(images: Path, tmp_path: Path) -> None:
    plan, out = plan_of(images), Destination(f"file://{tmp_path}/out")
    out.system.makedirs(out.root)
    counts = score_part(plan.part(2), plan, cast("Scorer", LengthScorer()), out)
    assert (out.parts(), out.counts("part-000002.parquet")) == (["part-000002.parquet"], counts)
    assert parquet.read_table(tmp_path / "out").num_rows == 85


def test_a_source_that_has_lost_rows_is_refused(images: Path, tmp_path: Path) -> None:
    plan, out = plan_of(images), Destination(str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"has changed since the job started\. Start again with --fresh"):
        score_part(Part(3, 0, 290, 310), plan, cast("Scorer", LengthScorer()), out)
    assert out.parts() == []
