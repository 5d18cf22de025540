"""Description of the served ensemble from complete and partial metadata."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from plurum.client.bulk.report import decision_lines
from plurum.client.connection.description import served_from_description
from plurum.spec import OperatingPoint, ReviewPromise

OUTPUTS = [{"name": "MEMBER_PROBABILITIES", "shape": ["-1", "2", "3"]}, {"name": "LABEL", "shape": ["-1", "1"]}]
PIXELS = [{"name": "PIXELS", "shape": ["-1", "16", "24", "3"]}]
METADATA = {
    "classes": ["CE", "LAA", "other"],
    "members": [{"name": "one", "sha256": "ab"}, {"name": "two", "sha256": "cd"}],
    "patient_rule": "majority",
}


def config(metadata: Any) -> dict[str, Any]:
    return {"max_batch_size": 16, "parameters": {"contract": {"string_value": json.dumps(metadata)}}}


def test_metadata_states_names_checkpoints_and_the_patient_rule() -> None:
    served = served_from_description(config(METADATA), OUTPUTS, PIXELS, encoded=True)
    assert (served.classes, served.members) == (("CE", "LAA", "other"), ("one", "two"))
    assert (served.max_batch_size, served.pixels_shape, served.takes_encoded) == (16, (16, 24, 3), True)
    assert (served.checkpoints, served.patient_rule) == (("ab", "cd"), "majority")
    assert served.metadata_sha256 == hashlib.sha256(json.dumps(METADATA).encode()).hexdigest()


def test_metadata_hash_changes_with_the_vote() -> None:
    voting = [METADATA | {"voting": {"weights": weights}} for weights in ([0.5, 0.5], [0.4, 0.6])]
    one, other = (served_from_description(config(metadata), OUTPUTS, [], encoded=True) for metadata in voting)
    assert one.metadata_sha256 != other.metadata_sha256
    assert one.pixels_shape is None


def test_gateway_states_only_names() -> None:
    names = {"classes": METADATA["classes"], "members": [{"name": "one"}, {"name": "two"}]}
    served = served_from_description(config(names), OUTPUTS, PIXELS, encoded=False)
    assert (served.members, served.checkpoints, served.patient_rule) == (("one", "two"), (), None)
    assert not served.takes_encoded


@pytest.mark.parametrize("given", [{}, config(["no metadata"]), {"parameters": {"contract": {"string_value": "{"}}}])
def test_without_metadata_names_are_numbers(given: dict[str, Any]) -> None:
    served = served_from_description(given, OUTPUTS, [{"name": "IMAGE", "shape": ["-1", "1"]}], encoded=False)
    assert (served.classes, served.members) == (("0", "1", "2"), ("0", "1"))
    assert (served.checkpoints, served.patient_rule, served.metadata_sha256) == ((), None, "")
    assert served.takes_encoded


POINT = {
    "criterion": "sensitivity",
    "value": 0.9,
    "confidence": 0.95,
    "positive": "CE",
    "threshold": 0.2,
    "review_interval": [0.1, 0.4],
    "costs": None,
    "review_cost": None,
}
PROMISE = {"risk": 0.01, "confidence": 0.95, "patients": 400, "errors": 0.0, "p_value": 0.02, "status": "certified"}
TWO = METADATA | {"classes": ["CE", "LAA"], "operating_point": POINT, "promise": PROMISE}


def test_metadata_states_the_point_and_the_promise() -> None:
    served = served_from_description(config(TWO), OUTPUTS, PIXELS, encoded=True)
    assert served.operating_point == OperatingPoint.model_validate(POINT)
    assert served.promise == ReviewPromise.model_validate(PROMISE)
    assert decision_lines(served) == [
        (
            "operating point: CE from a probability of 0.2000 on: sensitivity of at least 0.9 for new patients like "
            "those of the validation images, at 95% confidence"
        ),
        (
            "review risk: at most 1.00% of new patients like those tested, with 95% confidence (certified): 0 errors "
            "in 400 certification patients with an unreviewed prediction"
        ),
    ]
    assert decision_lines(served_from_description(config(METADATA), OUTPUTS, PIXELS, encoded=True)) == []


@pytest.mark.parametrize("promise", [PROMISE | {"new": 1}, {"risk": 2}, "all is well", ["x"]])
def test_a_promise_of_another_version_is_not_shown(promise: object) -> None:
    served = served_from_description(config(TWO | {"promise": promise}), OUTPUTS, PIXELS, encoded=True)
    assert served.promise is None
    assert served.point is not None
    assert len(decision_lines(served)) == 1


def test_other_models_are_refused() -> None:
    with pytest.raises(KeyError):
        served_from_description({}, [{"name": "logits", "shape": ["-1", "10"]}], [], encoded=True)
