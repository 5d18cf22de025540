"""The growth of cost: figures from turns, the picture, and a run of one axis."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from plurum.benchmarks.claims.growth.plots import plot_from_growth
from plurum.benchmarks.claims.growth.result import Axis, GrowthPoint, GrowthResult, GrowthTurn, csv_from_growth
from tests.benchmarks.programs import run_benchmark

pytestmark = pytest.mark.timing


def turn(axis: Axis, value: int, rate: float, *latencies: float) -> GrowthTurn:
    point = GrowthPoint.model_validate({axis: value})
    busy = {"decoding": 1.0, "members": 10.0 / rate, "voter": 0.5}
    return GrowthTurn(axis=axis, point=point, images_per_s=rate, latencies_ms=latencies, busy_ms=busy)


@pytest.fixture
def result() -> GrowthResult:
    turns = [
        turn("members", 1, 100.0, 5.0, 6.0),
        turn("members", 1, 50.0, 7.0),
        turn("members", 1, 80.0, 900.0, 8.0),
        turn("members", 3, 20.0, 40.0),
        turn("clients", 1, 9.0, 3.0),
        turn("clients", 64, 99.0, 300.0),
    ]
    return GrowthResult(arch="test", turns=tuple(turns), rounds=3, seconds=1.0, machine={}, versions={})


def test_figures_are_medians_over_turns_and_over_requests(result: GrowthResult) -> None:
    assert result.axes() == ["members", "clients"]
    assert result.values("members") == [1, 3]
    assert result.rate("members", 1) == 80.0
    assert result.p50_ms("members", 1) == 7.0
    assert result.busy_ms("members", 1, "members") == 10.0 / 80.0


def test_the_table_has_a_row_for_each_turn(result: GrowthResult) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_from_growth(result))))
    assert len(rows) == len(result.turns)
    assert (rows[3]["axis"], rows[3]["members"], rows[3]["clients"]) == ("members", "3", "8")
    assert float(rows[3]["images_per_s"]) == 20.0
    assert float(rows[3]["p50_ms"]) == 40.0
    assert float(rows[3]["voter_busy_ms"]) == 0.5


def test_the_picture_has_a_column_for_each_axis(result: GrowthResult) -> None:
    one_axis = result.model_copy(update={"turns": result.turns[:4]})
    wide, narrow = (Image.open(io.BytesIO(plot_from_growth(one))) for one in (result, one_axis))
    assert wide.width > 1.5 * narrow.width
    assert wide.height == narrow.height


@pytest.mark.triton
def test_the_axis_of_clients_is_measured(work: Path, tmp_path: Path) -> None:
    options = ("--axis", "clients", "--quick", "--rounds", 1, "--seconds", 0.2)
    ended = run_benchmark("claims.growth", "--work", work, "--out", tmp_path / "out", *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["growth.csv", "growth.json", "growth.png"]
    found = GrowthResult.model_validate_json((tmp_path / "out" / "growth.json").read_text())
    assert found.values("clients") == [1, 64]
    for one in found.turns:
        assert one.point.members == 3
        assert one.busy_ms.keys() == {"decoding", "members", "voter"}
        assert all(value > 0 for value in one.busy_ms.values())
        # Three members compute on no more cores than there are.
        assert one.images_per_s * one.busy_ms["members"] / 1000 < 3 * int(found.machine["cores"]) + 1
    # With so many at once each waits for the others.
    assert found.p50_ms("clients", 64) > 3 * found.p50_ms("clients", 1)
    assert "64 clients" in ended.stdout
