from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client import Failure, Prediction, Served
from plurum.client.connection.predictions import predictions_from_tensors
from plurum.errors import ServerError

SERVED = Served(("CE", "LAA"), ("one", "two", "three"), 8, (16, 16, 3))


def tensors() -> dict[str, npt.NDArray[Any]]:
    """Answers to two images, in numbers that 32-bit floats hold exactly."""
    return {
        "PROBABILITIES": np.array([[0.75, 0.25], [0.5, 0.5]], np.float32),
        "LABEL": np.array([[b"CE"], [b"LAA"]], object),
        "ENTROPY": np.array([[0.5], [0.625]], np.float32),
        "DISAGREEMENT": np.array([[0.125], [0.25]], np.float32),
        "STD": np.array([[0.0625, 0.125], [0.25, 0.5]], np.float32),
        "MEMBER_PROBABILITIES": np.array(
            [[[1, 0], [0.5, 0.5], [0.75, 0.25]], [[0, 1], [0.25, 0.75], [1, 0]]], np.float32
        ),
        "PREDICTION_SET": np.array([[True, False], [True, True]]),
        "REVIEW": np.array([[False], [True]]),
    }


def test_every_tensor_finds_its_place() -> None:
    first, second = predictions_from_tensors(tensors(), SERVED, 2)
    assert first == Prediction(
        label="CE",
        confidence=0.75,
        probabilities={"CE": 0.75, "LAA": 0.25},
        entropy=0.5,
        disagreement=0.125,
        std={"CE": 0.0625, "LAA": 0.125},
        member_probabilities={
            "one": {"CE": 1.0, "LAA": 0.0},
            "two": {"CE": 0.5, "LAA": 0.5},
            "three": {"CE": 0.75, "LAA": 0.25},
        },
        prediction_set=("CE",),
        review=False,
    )
    assert (second.label, second.confidence, second.prediction_set, second.review) == ("LAA", 0.5, ("CE", "LAA"), True)
    assert second.member_probabilities["three"] == {"CE": 1.0, "LAA": 0.0}


def test_a_prediction_is_plain_python_and_goes_through_json() -> None:
    first = predictions_from_tensors(tensors(), SERVED, 2)[0]
    assert type(first.confidence) is float
    assert type(first.review) is bool
    back = json.loads(json.dumps(first.to_dict()))
    assert back["prediction_set"] == ["CE"]
    assert Prediction(**back | {"prediction_set": tuple(back["prediction_set"])}) == first


def test_a_failure_gives_its_reason_as_error() -> None:
    assert Failure(3, "a.png", "broken").to_dict() == {"error": "broken"}


@pytest.mark.parametrize("name", sorted(tensors()))
def test_an_output_that_is_missing_or_misshapen_is_named(name: str) -> None:
    answers = tensors()
    tensor = answers.pop(name)
    with pytest.raises(ServerError, match=f"output {name}: .* got no such output"):
        predictions_from_tensors(answers, SERVED, 2)
    with pytest.raises(ServerError, match=f"output {name}: .* got shape"):
        predictions_from_tensors(answers | {name: tensor[..., :0]}, SERVED, 2)


def test_answers_to_another_number_of_images_are_refused() -> None:
    with pytest.raises(ServerError, match=r"expected shape \[3, 2\], got shape \[2, 2\]"):
        predictions_from_tensors(tensors(), SERVED, 3)
