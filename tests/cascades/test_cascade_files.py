"""Files, tables and the page say which members ran, and leave the others empty."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from plurum.client import Prediction, answers_report, predictions_to_frame
from plurum.client.ui.pages import member_votes
from plurum.predictions.prediction import numbers_from_prediction
from tests.client.samples import prediction

FULL = replace(prediction("CE", 0.75), members_used=("one", "two"))
LEFT = replace(FULL, members_used=("two",), member_probabilities=FULL.member_probabilities | {"one": None})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_names_the_members_that_ran(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    with answers_report(path, ("CE", "LAA"), has_cascade=True) as report:
        for name, answer in (("a.png", FULL), ("b.png", LEFT)):
            report.add(name, answer)
    if suffix == ".parquet":
        assert [list(one) for one in pd.read_parquet(path)["members_used"]] == [["one", "two"], ["two"]]
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["members_used"] for row in rows] == ["one|two", "two"]
    assert [row["error"] for row in rows] == ["", ""]


def test_a_file_without_a_cascade_has_no_such_column(tmp_path: Path) -> None:
    with answers_report(tmp_path / "out.csv", ("CE", "LAA")) as report:
        report.add("a.png", prediction("CE"))
    assert "members_used" not in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_a_table_has_empty_cells_for_members_that_did_not_run() -> None:
    frame = predictions_to_frame([FULL, LEFT])
    assert frame["one_p_CE"].isna().tolist() == [False, True]
    assert frame["two_p_CE"].isna().tolist() == [False, False]
    assert frame["members_used"].tolist() == [("one", "two"), ("two",)]


def test_json_has_null_and_reads_back() -> None:
    values = LEFT.to_dict()
    assert values["member_probabilities"]["one"] is None
    assert values["members_used"] == ["two"]
    assert Prediction.from_dict(values) == LEFT
    # An older version wrote no such key.
    assert (
        Prediction.from_dict({name: one for name, one in values.items() if name != "members_used"}).members_used is None
    )


def test_the_page_shows_the_votes_of_members_that_ran() -> None:
    assert [vote.name for vote in member_votes(FULL)] == ["one", "two"]
    assert [vote.name for vote in member_votes(LEFT)] == ["two"]


def test_numbers_of_members_that_did_not_run_are_0() -> None:
    numbers = numbers_from_prediction(LEFT, ("CE", "LAA"))
    assert numbers["member_probabilities"] == [[0.0, 0.0], [0.3, 0.7]]
