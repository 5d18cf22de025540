"""How winners are named and put aside for counting: real code, with a recorder in the place of the metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.model_repository.triton_recorder import Recorder, loaded


@pytest.fixture
def module(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    del recorder

    class FakeMetrics:
        def __init__(self, _: Path) -> None:
            self.observed: list[Any] = []

        def observe(self, predictions: Any, counted: Any) -> None:
            self.observed.append(predictions | {"counted": counted})

    metrics = loaded("voter/metrics.py")
    metrics.VoterMetrics = FakeMetrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metrics", metrics)
    return loaded("labels/labels.py")


def graph_answers() -> dict[str, Any]:
    members = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.4, 0.6], [0.1, 0.9]]], np.float32)
    return {
        "INDEX": np.array([[0], [1]], np.int32),
        "PROBABILITIES": members.mean(axis=1),
        "DISAGREEMENT": np.array([[0.1], [0.2]], np.float32),
        "MEMBER_PROBABILITIES": members,
        "REVIEW": np.array([[False], [True]]),
    }


@pytest.fixture
def labels(module: ModuleType, tmp_path: Path) -> Any:
    metadata = {"members": [{"name": "first"}, {"name": "second"}], "classes": ["CE", "LAA"]}
    (tmp_path / "ensemble.json").write_text(json.dumps(metadata))
    return module.Labels(tmp_path)


def test_labels_are_named_and_kept_for_counting(labels: Any) -> None:
    answers = graph_answers()
    assert labels.name_winners(answers, ["7"], [2]).tolist() == [[b"CE"], [b"LAA"]]
    # What it was given may be written to again.
    expected = graph_answers()
    for array in answers.values():
        array[...] = 0
    (observed,) = labels._metrics.observed
    np.testing.assert_array_equal(observed["label"], [0, 1])
    np.testing.assert_array_equal(observed["member_probabilities"], expected["MEMBER_PROBABILITIES"])
    np.testing.assert_array_equal(observed["review"], [False, True])
    assert observed["counted"].tolist() == [True, True]


def test_a_probe_is_not_counted(labels: Any) -> None:
    labels.name_winners(graph_answers(), ["plurum-probe", "7"], [1, 1])
    assert labels._metrics.observed[0]["counted"].tolist() == [False, True]


def test_a_nan_from_a_member_is_an_error(module: ModuleType, labels: Any) -> None:
    answers = graph_answers()
    answers["MEMBER_PROBABILITIES"][1, 1] = np.nan
    with pytest.raises(module.NoVoteError, match="no vote: NaN from second"):
        labels.name_winners(answers, ["7"], [2])
    assert labels._metrics.observed == []


def test_p_values_are_kept_for_counting_and_a_nan_is_an_error(module: ModuleType, labels: Any) -> None:
    p_values = np.array([[0.5], [0.25]], np.float32)
    tested = {"OUTLIER": p_values, "REVIEW_REASON": np.array([[0], [4]], np.uint8)}
    labels.name_winners(graph_answers() | tested, ["7"], [2])
    (observed,) = labels._metrics.observed
    assert (observed["outlier"].tolist(), observed["review_reason"].tolist()) == ([0.5, 0.25], [0, 4])
    p_values[0] = np.nan
    with pytest.raises(module.NoVoteError, match="no vote: NaN from a detector"):
        labels.name_winners(graph_answers() | tested, ["7"], [2])
