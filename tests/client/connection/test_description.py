"""Description of the served ensemble from complete and partial metadata."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from plurum.client.connection.description import served_from_description

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


def test_other_models_are_refused() -> None:
    with pytest.raises(KeyError):
        served_from_description({}, [{"name": "logits", "shape": ["-1", "10"]}], [], encoded=True)
