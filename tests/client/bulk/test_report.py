from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from plurum.client import Failure, Prediction, answers_report, json_line, table_from_answers
from plurum.client.bulk.report import patients_report
from plurum.errors import OutputError
from tests.client.samples import prediction

ANSWER = replace(prediction(confidence=0.8125), entropy=0.5, disagreement=0.0000004)
FAILURE = Failure(1, "b.png", 'no image, "says" the server')


def shown(*rows: tuple[Path, Prediction | Failure]) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(table_from_answers(rows))
    return file.getvalue()


def test_csv_has_one_row_per_image(tmp_path: Path) -> None:
    with answers_report(tmp_path / "out.csv", ("CE", "LAA")) as report:
        report.add(Path("a, with comma.png"), ANSWER)
        report.add(Path("b.png"), FAILURE)
        assert not (tmp_path / "out.csv").exists()
    with (tmp_path / "out.csv").open(newline="") as file:
        answer, failure = csv.DictReader(file)
    assert answer == {
        "path": "a, with comma.png",
        "label": "CE",
        "confidence": "0.812500",
        "review": "true",
        "entropy": "0.500000",
        "disagreement": "0.000000",
        "prediction_set": "CE|LAA",
        "p_CE": "0.812500",
        "p_LAA": "0.187500",
        "error": "",
    }
    assert failure["path"] == "b.png"
    assert failure["error"] == FAILURE.reason
    assert not any(value for key, value in failure.items() if key not in {"path", "error"})


def test_pandas_reads_types_back(tmp_path: Path) -> None:
    with answers_report(tmp_path / "out.csv", ("CE", "LAA")) as report:
        report.add(Path("a.png"), ANSWER)
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["p_CE"].tolist() == [0.8125]
    assert frame["review"].tolist() == [True]


def test_a_block_that_raises_leaves_the_old_csv(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")

    def half() -> None:
        with answers_report(tmp_path / "out.csv", ("CE", "LAA")) as report:
            report.add(Path("a.png"), ANSWER)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_folder_is_refused_as_a_csv(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="got a folder"), answers_report(tmp_path, ("CE", "LAA")):
        pass


def test_names_that_are_not_utf_8_are_written_as_bytes(tmp_path: Path) -> None:
    with answers_report(tmp_path / "out.csv", ("CE", "LAA")) as report:
        report.add(Path("caf\udce9.png"), ANSWER)
    assert b"caf\xe9.png" in (tmp_path / "out.csv").read_bytes()
    assert "caf?.png" in shown((Path("caf\udce9.png"), ANSWER))
    assert json.loads(json_line(Path("caf\udce9.png"), ANSWER))["path"] == "caf\udce9.png"


def test_a_json_line_is_one_object() -> None:
    line = json_line(Path("a.png"), ANSWER)
    assert "\n" not in line
    assert json.loads(line) == {"path": "a.png"} | ANSWER.to_dict()
    assert json.loads(json_line(Path("b.png"), FAILURE)) == {"path": "b.png", "error": FAILURE.reason}


def test_the_table_is_for_people() -> None:
    text = shown((Path("a [bold].png"), ANSWER), (Path("b.png"), FAILURE))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["path", "label", "confidence", "entropy", "disagreement", "review"]
    assert lines[1] == ["a", "[bold].png", "CE", "0.812", "0.500", "0.000", "review"]
    assert lines[2] == ["b.png", "no", "answer"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_reports_are_private_whatever_the_umask(tmp_path: Path, suffix: str) -> None:
    out, patients = tmp_path / f"out{suffix}", tmp_path / f"patients{suffix}"
    former = os.umask(0)
    try:
        with answers_report(out, ("CE", "LAA")) as report:
            report.add(Path("patient-7.png"), ANSWER)
            (hidden,) = tmp_path.iterdir()
            assert hidden.stat().st_mode & 0o777 == 0o600
        patients_report(patients, [], ("CE", "LAA"))
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in (out, patients)} == {0o600}
