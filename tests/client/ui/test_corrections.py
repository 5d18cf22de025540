"""The CSV of corrections is what `plurum train` and `plurum data` read."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from plurum.cli.main import app
from plurum.client.ui import ReviewStore, write_corrections
from plurum.errors import DataError
from plurum.spec import ImageSpec
from plurum.training import load_data
from tests.client.samples import png, prediction

LABELS = ("CE", "LAA", "CE", "LAA", "CE", "LAA", "CE", "LAA")


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    """Eight decided images, one that was taken back and one that waits."""
    store = ReviewStore(tmp_path / "reviews", "Ada")
    for number, label in enumerate(LABELS):
        store.decide(store.add(png(20 * number), f"scan{number}.png", prediction()), label, 0)
    taken_back = store.add(png(201), "taken-back.png", prediction())
    store.decide(taken_back, None, store.decide(taken_back, "CE", 0).number)
    store.add(png(202), "waiting.png", prediction())
    return store


def test_training_reads_the_labels_and_the_images(store: ReviewStore, tmp_path: Path) -> None:
    assert write_corrections(store, tmp_path / "elsewhere" / "corrections.csv") == 8
    data = load_data(str(tmp_path / "elsewhere" / "corrections.csv"), seed=0)
    assert data.classes == ("CE", "LAA")
    spec = ImageSpec(height=16, width=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pixels = data.pixels(spec)
    found = {int(one[0, 0, 0]): data.classes[label] for one, label in zip(pixels, data.table.labels, strict=True)}
    assert found == {20 * number: label for number, label in enumerate(LABELS)}
    np.testing.assert_array_equal(np.unique(pixels[..., 1]), [40])


def test_plurum_data_accepts_it(store: ReviewStore, tmp_path: Path) -> None:
    write_corrections(store, tmp_path / "corrections.csv")
    said = CliRunner().invoke(app, ["data", str(tmp_path / "corrections.csv")])
    assert said.exit_code == 0, said.output
    assert "8 images of 2 classes" in said.output


def test_row_has_prediction_and_reviewer(store: ReviewStore, tmp_path: Path) -> None:
    write_corrections(store, tmp_path / "corrections.csv")
    with (tmp_path / "corrections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["answered"] for row in rows} == {"CE"}
    assert rows[1] | {"path": "", "decided_at": ""} == {
        "path": "",
        "label": "LAA",
        "answered": "CE",
        "confidence": "0.600000",
        "name": "scan1.png",
        "reviewer": "Ada",
        "decided_at": "",
        "sampling_probability": "1",
    }
    assert all(row["decided_at"].endswith("+00:00") for row in rows)


def test_rows_keep_the_probability_with_which_they_were_chosen(tmp_path: Path) -> None:
    store, sure = ReviewStore(tmp_path / "reviews"), prediction(review=False)
    for number, (one, by_person) in enumerate(
        [(prediction(), False), (replace(sure, audit=True), False), (sure, True)]
    ):
        sha256 = store.add(png(number), "scan.png", one, by_person=by_person, audit_rate=1 / 64)
        store.decide(sha256, "CE", 0)
    write_corrections(store, tmp_path / "corrections.csv")
    with (tmp_path / "corrections.csv").open(newline="") as file:
        assert [row["sampling_probability"] for row in csv.DictReader(file)] == ["1", "0.015625", ""]


def test_file_names_never_become_formulas(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path / "reviews")
    store.decide(store.add(png(1), '=HYPERLINK("x")', prediction()), "CE", 0)
    write_corrections(store, tmp_path / "corrections.csv")
    with (tmp_path / "corrections.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["name"] == '\'=HYPERLINK("x")'


def test_without_decisions_no_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no decisions yet"):
        write_corrections(ReviewStore(tmp_path / "reviews"), tmp_path / "corrections.csv")
    assert not (tmp_path / "corrections.csv").exists()
