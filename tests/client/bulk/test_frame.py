from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plurum.client import EnsembleClient, Failure, frame_with_predictions, predictions_to_frame
from plurum.errors import SettingsError
from plurum.run import Run
from plurum.serving import Server
from tests.client.samples import prediction

PREDICTION = prediction(confidence=0.75)


def test_each_answer_is_a_row_and_each_number_a_column() -> None:
    frame = predictions_to_frame([PREDICTION, Failure(1, "b.png", "no image")], ["a.png", "b.png"])
    assert list(frame.columns) == [
        *("label", "confidence", "review", "entropy", "disagreement", "prediction_set"),
        *("p_CE", "p_LAA", "std_CE", "std_LAA", "one_p_CE", "one_p_LAA", "two_p_CE", "two_p_LAA", "error"),
    ]
    assert frame.loc["a.png", "p_LAA"] == 0.25
    assert frame.loc["a.png", "two_p_LAA"] == 0.7
    assert frame.loc["a.png", "prediction_set"] == ("CE", "LAA")
    assert frame["error"].isna().tolist() == [True, False]
    assert frame.loc["b.png", "error"] == "no image"
    assert frame.loc["b.png"].drop("error").isna().all()


def test_empty_input_has_the_usual_columns() -> None:
    frame = predictions_to_frame([])
    assert list(frame.columns)[0::6] == ["label", "error"]
    assert len(frame) == 0


def test_too_few_names_are_refused() -> None:
    with pytest.raises(SettingsError, match="expected 2 names, one per answer, got 1"):
        predictions_to_frame([PREDICTION, PREDICTION], ["a.png"])


@pytest.mark.triton
def test_a_frame_of_paths_gets_the_answers_columns(served: Server, run: Run, tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(np.array(run.pixels()[index])).save(tmp_path / f"{index}.png")
    files = [str(tmp_path / name) for name in ("1.png", "gone.png", "0.png")]
    # An index may name rows twice, and in any order.
    frame = pd.DataFrame({"file": files, "age": [61, 62, 63]}, index=["x", "y", "x"])
    with EnsembleClient(served.urls.grpc) as client:
        answered = frame_with_predictions(client, frame, path="file")
        expected = predictions_to_frame(client.stream(files))
        with pytest.raises(SettingsError, match="path: expected one of file, age, got 'path'"):
            frame_with_predictions(client, frame)
        with pytest.raises(SettingsError, match="expected no column 'label'"):
            frame_with_predictions(client, frame.rename(columns={"age": "label"}), path="file")
    assert list(frame.columns) == ["file", "age"]
    assert list(answered.columns) == [*frame.columns, *expected.columns]
    assert answered.index.tolist() == ["x", "y", "x"]
    assert answered["age"].tolist() == [61, 62, 63]
    assert answered["label"].tolist()[::2] == expected["label"].tolist()[::2]
    assert answered["error"].notna().tolist() == [False, True, False]
