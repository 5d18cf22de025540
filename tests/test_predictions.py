from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client import Failure, Prediction
from plurum.errors import ServerError
from plurum.predictions.outputs import tensors_from_verdict, voted_outputs
from plurum.predictions.prediction import predictions_from_tensors, verdict_from_predictions
from plurum.voting import OutlierTest, VotingRule, decide

NAMES = ("CE", "LAA"), ("one", "two", "three")


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
    first, second = predictions_from_tensors(tensors(), *NAMES, 2)
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
    first = predictions_from_tensors(tensors(), *NAMES, 2)[0]
    assert type(first.confidence) is float
    assert type(first.review) is bool
    back = json.loads(json.dumps(first.to_dict()))
    assert back["prediction_set"] == ["CE"]
    assert Prediction.from_dict(back) == first


def test_json_of_another_version_is_read() -> None:
    first = predictions_from_tensors(tensors(), *NAMES, 2, "a0000001")[0]
    newer = first.to_dict() | {"ensemble": "demo", "invented_later": [1]}
    assert Prediction.from_dict(newer) == first
    older = {name: value for name, value in newer.items() if name != "release"}
    assert Prediction.from_dict(older).release is None


def test_a_verdict_survives_the_way_to_the_client_and_back() -> None:
    members = np.random.default_rng(0).dirichlet([1, 1], (5, 3))
    test = OutlierTest(0.4, (True, False, True), (0.5, 0.0, 0.5), (-1.0, 0.0, 1.0), None, 3)
    rule = VotingRule((0.5, 0.3, 0.2), quantiles=(0.6, 0.6), review_threshold=0.7, outliers=test)
    verdict = decide(members, rule, np.array([0, 3, 0, 3, 0])[:, None].repeat(3, axis=1))
    assert verdict.review_reason.tolist() == [3, 7, 0, 4, 1]
    tensors = tensors_from_verdict(verdict, [b"CE", b"LAA"], voted_outputs(has_outliers=True))
    back = verdict_from_predictions(predictions_from_tensors(tensors, *NAMES, 5), NAMES[0])
    for name, values in vars(verdict).items():
        np.testing.assert_allclose(getattr(back, name), values, atol=1e-6, err_msg=name)


def test_an_older_server_states_no_reasons() -> None:
    first, second = predictions_from_tensors(tensors(), *NAMES, 2)
    assert (first.outlier, second.review_reason) == (None, None)
    verdict = verdict_from_predictions([first, second], NAMES[0])
    assert verdict.outlier.tolist() == [1, 1]
    assert verdict.review_reason.tolist() == [0, 1]


def test_reasons_for_review_have_names() -> None:
    newer: dict[str, npt.NDArray[Any]] = {
        "OUTLIER": np.array([[0.5], [0.0625]], np.float32),
        "REVIEW_REASON": np.array([[0], [6]], np.uint8),
    }
    first, second = predictions_from_tensors(tensors() | newer, *NAMES, 2)
    assert (first.review_reason, second.review_reason, second.outlier) == ((), ("set", "outlier"), 0.0625)
    assert Prediction.from_dict(json.loads(json.dumps(second.to_dict()))) == second


def test_a_failure_gives_its_reason_as_error() -> None:
    assert Failure(3, "a.png", "broken").to_dict() == {"error": "broken"}


@pytest.mark.parametrize("name", sorted(tensors()))
def test_an_output_that_is_missing_or_misshapen_is_named(name: str) -> None:
    answers = tensors()
    tensor = answers.pop(name)
    with pytest.raises(ServerError, match=f"output {name}: .* got no such output"):
        predictions_from_tensors(answers, *NAMES, 2)
    with pytest.raises(ServerError, match=f"output {name}: .* got shape"):
        predictions_from_tensors(answers | {name: tensor[..., :0]}, *NAMES, 2)


def test_answers_to_another_number_of_images_are_refused() -> None:
    with pytest.raises(ServerError, match=r"expected shape \[3, 1\], got shape \[2, 1\]"):
        predictions_from_tensors(tensors(), *NAMES, 3)
