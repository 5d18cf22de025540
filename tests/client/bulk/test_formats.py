"""One answer in each format, as others read it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from plurum.client import Failure, PatientAnswer, patients_report
from plurum.client.bulk.columns import COLUMNS as OUTPUT_COLUMNS
from plurum.client.bulk.columns import columns_of_images
from plurum.client.bulk.formats import Format, RowSubject, format_from_path
from plurum.errors import SettingsError
from plurum.predictions.outputs import OUTPUTS
from tests.client.samples import prediction

CLASSES = ("CE", 'LAA, "large"')
ANSWER = replace(
    prediction(CLASSES[1], 0.8125), probabilities={CLASSES[0]: 0.1875, CLASSES[1]: 0.8125}, prediction_set=CLASSES
)
FAILURE = Failure(1, "b.png", 'no image, "says" the server')
SUBJECTS = [RowSubject("a,\n.png", "ann", CLASSES[1]), RowSubject("b \udce9.png", "", "CE")]
COLUMNS = ("path", "patient", "expected")


def written(path: Path) -> Format:
    form = format_from_path(path, columns_of_images(CLASSES))
    rows = form.writer(path, COLUMNS)
    rows.add(SUBJECTS[0], form.body(ANSWER))
    rows.add(SUBJECTS[1], form.body(FAILURE))
    rows.close()
    return form


def test_csv(tmp_path: Path) -> None:
    written(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        one, other = csv.DictReader(file)
    assert [one[name] for name in COLUMNS] == list(SUBJECTS[0])
    assert (one["label"], one["review"], one["prediction_set"]) == (CLASSES[1], "true", "|".join(CLASSES))
    assert (one["confidence"], one[f"p_{CLASSES[0]}"], one["error"]) == ("0.812500", "0.187500", "")
    assert [other[name] for name in COLUMNS] == list(SUBJECTS[1])
    assert other["error"] == FAILURE.reason
    assert not any(value for name, value in other.items() if name not in {*COLUMNS, "error"})


def test_json_lines(tmp_path: Path) -> None:
    written(tmp_path / "out.jsonl")
    one, other = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    assert one == SUBJECTS[0]._asdict() | ANSWER.to_dict()
    assert other == SUBJECTS[1]._asdict() | {"error": FAILURE.reason}


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Row groups of one: as with many rows.
    monkeypatch.setattr("plurum.client.bulk.formats._ROW_GROUP", 1)
    written(tmp_path / "out.parquet")
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == [
        *(*COLUMNS, "label", "confidence", "review", "entropy", "disagreement", "prediction_set"),
        *(f"p_{name}" for name in CLASSES),
        "error",
    ]
    assert frame["path"].tolist() == ["a,\n.png", "b \\udce9.png"]
    assert frame.loc[0, "confidence"] == 0.8125
    assert frame["prediction_set"][0].tolist() == list(CLASSES)
    assert frame.loc[0, "review"]
    assert frame["error"].isna().tolist() == [True, False]
    assert frame.loc[1].drop([*COLUMNS, "error"]).isna().all()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_probabilities_are_read_back(tmp_path: Path, suffix: str) -> None:
    form = format_from_path(tmp_path / f"out{suffix}", columns_of_images(CLASSES))
    assert form.numbers(form.body(ANSWER)) == [0.1875, 0.8125]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_patients_have_a_row_each(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"patients{suffix}"
    nobody = PatientAnswer("bob", "", float("nan"), {}, 0, 0, 2)
    patients_report(
        path,
        [PatientAnswer("ann", "CE", 0.75, dict(zip(CLASSES, (0.75, 0.25), strict=True)), 3, 1, 0), nobody],
        CLASSES,
    )
    readers: dict[str, Any] = {
        ".csv": pd.read_csv,
        ".jsonl": lambda file: pd.read_json(file, lines=True),
        ".parquet": pd.read_parquet,
    }
    frame = readers[suffix](path)
    assert frame["patient"].tolist() == ["ann", "bob"]
    assert frame["confidence"].fillna(-1).tolist() == [0.75, -1]
    assert frame[["images", "review", "failed"]].to_numpy().tolist() == [[3, 1, 0], [0, 0, 2]]
    if suffix != ".jsonl":
        assert frame[f"p_{CLASSES[1]}"].fillna(-1).tolist() == [0.25, -1]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"out\.xlsx: expected a name that ends in \.csv, \.jsonl, \.parquet"):
        format_from_path(tmp_path / "out.xlsx", {})


def test_the_page_has_a_row_for_every_output() -> None:
    page = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")
    for one in OUTPUT_COLUMNS:
        column = one.column.format(member="MEMBER", name="CLASS")
        tensor = f"`{one.name}`, {one.datatype} [{', '.join(map(str, one.dims))}] " if one.name in OUTPUTS else ""
        assert f"| `{one.field}` | {one.meaning} | `{column}` | {tensor}|" in page
