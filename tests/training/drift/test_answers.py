"""Predictions are read from every format that `plurum predict` writes, and other files are refused in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from plurum.client import PatientAnswer, patients_report
from plurum.errors import DataError
from plurum.training.drift.answers import answers_from_verdict, read_answers
from plurum.voting import VotingRule, decide
from tests.training.drift.files import CLASSES, write_answers

SUFFIXES = [".csv", ".jsonl", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = write_answers(tmp_path / f"answers{suffix}")
    found = read_answers([path])
    assert (found.names, found.classes, found.failed) == ((str(path),), CLASSES, 1)
    assert found.patients == ("ann", "007", "")
    assert found.probabilities.tolist() == [[0.9375, 0.0625], [0.25, 0.75], [0.5, 0.5]]
    assert found.label.tolist() == [0, 1, 0]
    assert found.confidence.tolist() == [0.9375, 0.75, 0.5]
    assert found.review.tolist() == [False, True, True]
    assert found.disagreement.tolist() == [0.1] * 3
    assert found.groups.tolist() == [0, 1, 2]
    assert found.outlier is None


def test_several_files_are_one_sample(tmp_path: Path) -> None:
    paths = [write_answers(tmp_path / f"answers{suffix}") for suffix in SUFFIXES]
    found = read_answers(paths)
    assert (len(found.label), found.failed) == (9, 3)
    assert found.patients == ("ann", "007", "") * 3
    # A patient in several files is one patient.
    assert found.groups.tolist() == [0, 1, 2, 0, 1, 3, 0, 1, 4]


def test_outlier_p_values_are_read_where_a_file_has_them(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "answers.csv")
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with (tmp_path / "outliers.csv").open("w", newline="") as file:
        values = ["outlier", "0.25", "", "0.5", "1"]
        csv.writer(file).writerows([*row[:-1], value, row[-1]] for row, value in zip(rows, values, strict=True))
    found = read_answers([tmp_path / "outliers.csv"]).outlier
    assert found is not None
    assert found.tolist() == [0.25, 0.5, 1.0]
    assert read_answers([tmp_path / "outliers.csv", path]).outlier is None
    row = json.loads(write_answers(tmp_path / "answers.jsonl").read_text().splitlines()[0])
    (tmp_path / "null.jsonl").write_text(json.dumps(row | {"outlier": None}))
    assert read_answers([tmp_path / "null.jsonl"]).outlier is None
    (tmp_path / "outlier.jsonl").write_text(json.dumps(row | {"outlier": 0.01}))
    assert read_answers([tmp_path / "outlier.jsonl"]).outlier == [0.01]
    # A detector that fails makes an outlier.
    rows = [row | {"outlier": 0.01}, row | {"outlier": None}]
    (tmp_path / "nan.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_answers([tmp_path / "nan.jsonl"]).outlier
    assert found is not None
    assert found.tolist() == [0.01, 0.0]


def test_a_verdict_is_rounded_as_files_are() -> None:
    members = np.array([[[2 / 3, 1 / 3]], [[0.2, 0.8]]])
    found = answers_from_verdict("test images", CLASSES, decide(members, VotingRule((1.0,))), ["ann", ""])
    assert found.probabilities.tolist() == [[0.666667, 0.333333], [0.2, 0.8]]
    assert (found.names, found.patients) == (("test images",), ("ann", ""))


REFUSED = {
    "empty.csv": ("", "can't be read: No columns to parse"),
    "header.csv": ("path,label,confidence,review,disagreement,p_CE,p_LAA,error\n", "expected at least one prediction"),
    "failed.csv": (
        "path,label,confidence,review,disagreement,p_CE,p_LAA,error\na,,,,,,,broken\n",
        "expected at least one prediction, got none",
    ),
    "manifest.csv": ("path,patient,label\na.png,ann,CE\n", "got none with a column 'review'"),
    "text.csv": (
        "path,label,review,disagreement,p_CE,p_LAA,error\na,CE,false,0.1,much,0.1,\n",
        "expected the values that plurum predict --out writes",
    ),
    "sum.csv": (
        "path,label,review,disagreement,p_CE,p_LAA,error\na,CE,false,0.1,0.5,0.1,\n",
        "probabilities of an image don't sum to 1",
    ),
    "nan.csv": (
        "path,label,review,disagreement,p_CE,p_LAA,error\na,CE,false,nan,0.5,0.5,\n",
        "column disagreement has values outside of 0 to inf",
    ),
    "flag.csv": (
        "path,label,review,disagreement,p_CE,p_LAA,error\na,CE,maybe,0,0.5,0.5,\n",
        "column review has 'maybe' instead of true or false",
    ),
    "label.csv": (
        "path,label,review,disagreement,p_CE,p_LAA,error\na,cat,true,0,0.5,0.5,\n",
        "label 'cat' has no column of probabilities",
    ),
    "rows.csv": ("path,label\na,b,c,d\n" * 3, "can't be read"),
    "broken.jsonl": ('{"path": "a.png"', "can't be read"),
    "list.jsonl": ("[1, 2]\n", "can't be read"),
    "broken.parquet": ("PAR1", "can't be read"),
    "answers.xlsx": ("", "got another suffix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    text, reason = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_answers([tmp_path / name])
    assert str(caught.value).startswith(str(tmp_path / name))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_and_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv can't be read: No such file"):
        read_answers([tmp_path / "nothing.csv"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv can't be read: .*folder"):
        read_answers([tmp_path / "folder.csv"])
    patients_report(tmp_path / "patients.csv", [PatientAnswer("ann", "CE", 1.0, {"CE": 1.0}, 1, 0, 0)], ("CE", "LAA"))
    with pytest.raises(DataError, match="Name the file of predictions for images"):
        read_answers([tmp_path / "patients.csv"])
    path = write_answers(tmp_path / "answers.jsonl")
    row = json.loads(path.read_text().splitlines()[0]) | {"label": "cat", "probabilities": {"cat": 0.5, "dog": 0.5}}
    (tmp_path / "cats.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"cats\.jsonl: expected the classes of .* \(CE, LAA\), got cat, dog"):
        read_answers([path, tmp_path / "cats.jsonl"])
