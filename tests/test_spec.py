from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plurum.errors import MetadataError
from plurum.predictions.outputs import TESTED, VOTED
from plurum.spec import (
    RESERVED_NAMES,
    Ensemble,
    Member,
    ReviewPromise,
    read_ensemble,
    read_member,
    release_from_version,
    version_from_release,
    write_metadata,
)
from plurum.voting import DecisionPoint, Verdict, VotingRule
from tests.sample_runs.member_samples import IMAGE, SCORES, SHA, member

STACKED = {"mode": "stack", "weights": [0.5, 0.5], "coefficients": [[0.1] * 4] * 2, "intercepts": [0.5, -0.5]}


def ensemble() -> dict[str, Any]:
    return {
        "name": "clots",
        "classes": ["CE", "LAA"],
        "image": dict(IMAGE),
        "members": [member("one"), member("two")],
        "voting": {"mode": "hard", "weights": [0.25, 0.75], "temperature": 1.5},
        "conformal": {"alpha": 0.1, "quantiles": [0.3, 0.4]},
        "review": {"threshold": 0.8, "risk": 0.02},
        "data": {"data": "clots.npz", "fingerprint": SHA, "images": {"train": 80, "validation": 40}},
        "scores": {"validation": SCORES},
    }


def written(folder: Path, content: object) -> Path:
    path = folder / "contract.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_ensemble_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Ensemble.model_validate(ensemble())
    write_metadata(tmp_path / "new" / "ensemble.json", whole)
    assert read_ensemble(tmp_path / "new" / "ensemble.json") == whole
    assert json.loads((tmp_path / "new" / "ensemble.json").read_text())["members"][1]["image"]["width"] == 24


def test_a_member_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Member.model_validate(member("one"))
    write_metadata(tmp_path / "member.json", whole)
    assert read_member(tmp_path / "member.json") == whole


def test_the_rule_is_what_the_metadata_states() -> None:
    assert Ensemble.model_validate(ensemble()).rule == VotingRule(
        weights=(0.25, 0.75), mode="hard", temperature=1.5, quantiles=(0.3, 0.4), review_threshold=0.8
    )


def test_a_stacked_rule_comes_back_with_its_coefficients(tmp_path: Path) -> None:
    voting = STACKED | {"prior_ratio": [1.5, 0.5]}
    whole = Ensemble.model_validate(ensemble() | {"voting": voting, "patient_rule": "mean"})
    write_metadata(tmp_path / "ensemble.json", whole)
    read = read_ensemble(tmp_path / "ensemble.json")
    assert read == whole
    assert read.rule.coefficients == ((0.1,) * 4,) * 2
    assert (read.rule.intercepts, read.rule.prior_ratio) == ((0.5, -0.5), (1.5, 0.5))


def test_without_conformal_the_rule_has_no_quantiles() -> None:
    assert Ensemble.model_validate(ensemble() | {"conformal": None}).rule.quantiles is None


def test_metadata_are_frozen() -> None:
    whole = Ensemble.model_validate(ensemble())
    with pytest.raises(ValidationError, match="frozen"):
        whole.name = "other"  # type: ignore[misc]


def edit(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a nested value by a path such as `members.0.name`."""

    def change(content: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = content
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", "red", "colour: Extra inputs are not permitted"),
        ("image.depth", 3, "image.depth: Extra inputs"),
        ("members.1.colour", "red", "members.1.colour: Extra inputs"),
        ("version", 3, "version: Input should be 1 or 2"),
        ("version", 2, "version: expected 1 for these keys, got 2"),
        ("name", "../up", "name: String should match pattern"),
        ("name", ".hidden", "name: String should match"),
        ("voting.weights", [0.5, 0.4], "weights: expected a sum of 1, got 0.9"),
        ("voting.weights", [1.5, -0.5], "voting.weights.0: Input should be less than or equal to 1"),
        ("voting.weights", [0.5, 0.25, 0.25], "3 weights for 2 members"),
        ("voting.temperature", 1e-320, "voting.temperature: expected an absolute value between 1e-100 and 1e100"),
        (
            "voting.prior_ratio",
            (1e308, 1.0),
            "voting.prior_ratio.0: expected an absolute value between 1e-100 and 1e100",
        ),
        ("voting.temperature", 0, "voting.temperature: Input should be greater than 0"),
        ("voting.mode", "median", "voting.mode: expected one of soft, hard, stack, got 'median'"),
        ("voting.mode", "stack", "mode stack needs coefficients and intercepts"),
        ("voting.intercepts", [0.1, 0.2], "intercepts: mode hard needs no coefficients or intercepts"),
        ("voting.prior_ratio", [1, 2], "prior_ratio: not supported with mode hard"),
        ("voting", {"weights": [0.5, 0.5], "prior_ratio": [1, 0]}, "voting.prior_ratio.1: Input should be greater"),
        ("voting", {"weights": [0.5, 0.5], "prior_ratio": [1]}, "1 prior ratio for 2 classes"),
        ("voting", STACKED | {"coefficients": [[0.1] * 4]}, "1 coefficients for 2 classes"),
        ("voting", STACKED | {"coefficients": [[0.1] * 2] * 2}, "2 coefficients in a row for 4 probabilities"),
        ("voting", STACKED | {"intercepts": [0.1] * 3}, "3 intercepts for 2 classes"),
        ("patient_rule", "median", "patient_rule: Input should be 'mean', 'max' or 'majority'"),
        ("conformal.quantiles", [0.5], "1 quantiles for 2 classes"),
        ("conformal.alpha", 1, "conformal.alpha: Input should be less than 1"),
        ("review.threshold", 1.5, "review.threshold: Input should be less than or equal to 1"),
        ("members", [], "members: Tuple should have at least 1 item"),
        ("members.1.name", "one", "two members share a name: one, one"),
        ("members.0.sha256", "short", "members.0.sha256: String should match"),
        ("members.0.classes", ["LAA", "CE"], "classes, colour, resize rule or window of member 'one' differ"),
        ("members.0.image", IMAGE | {"colour": "grey"}, "resize rule or window of member 'one' differ from"),
        ("classes", ["CE"], "classes: Tuple should have at least 2 items"),
        ("classes", ["CE", "CE"], "classes: a class is named twice: CE, CE"),
        ("image.height", 4, "image.height: Input should be greater than or equal to 8"),
        ("image.std", (0.2, 0.2, 0), "image.std.2: Input should be greater than 0"),
        ("image.colour", "bgr", "image.colour: Input should be 'rgb' or 'grey'"),
        ("scores.holdout", SCORES, "scores.holdout"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_it(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    content = ensemble()
    edit(path, value)(content)
    with pytest.raises(MetadataError) as caught:
        read_ensemble(written(tmp_path, content))
    assert message in str(caught.value)
    start = f"{tmp_path / 'contract.json'} is not valid ensemble metadata of version 1 or 2: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


POINT = {"criterion": "sensitivity", "value": 0.95, "confidence": 0.95, "positive": "CE", "threshold": 0.2}
COSTS = {"criterion": "costs", "costs": [[0, 5], [1, 0]], "positive": "CE", "threshold": 1 / 6}


def ensemble_at(point: dict[str, Any]) -> dict[str, Any]:
    soft = {"mode": "soft", "weights": [0.25, 0.75]}
    return ensemble() | {"version": 2, "voting": soft, "operating_point": point}


def test_a_point_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Ensemble.model_validate(ensemble_at(POINT | {"review_interval": [0.1, 0.4]}))
    write_metadata(tmp_path / "ensemble.json", whole)
    assert read_ensemble(tmp_path / "ensemble.json") == whole
    assert whole.rule.point == DecisionPoint(positive=0, threshold=0.2, review_interval=(0.1, 0.4))
    assert Ensemble.model_validate(ensemble_at(COSTS)).rule.point == DecisionPoint(positive=0, threshold=1 / 6)
    assert "operating_point" not in Ensemble.model_validate(ensemble()).model_dump()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (POINT | {"threshold": None}, "positive: expected a positive class together with a threshold"),
        (POINT | {"positive": "ce"}, "unknown positive class 'ce'; available: CE, LAA"),
        (POINT | {"positive": None, "threshold": None}, "positive: expected a positive class, or costs"),
        (POINT | {"value": None}, "criterion: sensitivity needs a value"),
        (POINT | {"value": 1.5}, "operating_point.value: Input should be less than 1"),
        (POINT | {"review_interval": [0.3, 0.4]}, "review_interval: expected an interval around 0.2, got 0.3 to 0.4"),
        (POINT | {"review_cost": 1}, "review_cost: expected costs beside it"),
        (COSTS | {"costs": None}, "criterion: costs needs costs and no value"),
        (COSTS | {"costs": [[0, 1, 1]] * 3}, "costs: expected 2 rows of 2 for 2 classes"),
        (COSTS | {"positive": None, "threshold": None}, "expected a positive class for 2 classes"),
        (COSTS | {"costs": [[0, -1], [1, 0]]}, "costs.0.1: Input should be greater than or equal to 0"),
    ],
)
def test_a_point_that_contradicts_itself_or_the_classes_is_refused(
    tmp_path: Path, point: dict[str, Any], message: str
) -> None:
    with pytest.raises(MetadataError, match=re.escape(message)):
        read_ensemble(written(tmp_path, ensemble_at(point)))


PROMISE = {"risk": 0.01, "confidence": 0.95, "patients": 300, "errors": 0, "p_value": 0.05}
DECISION = {"criterion": "sensitivity", "value": 0.95, "patients": 60, "errors": 0, "p_value": 0.05}


def test_a_promise_comes_and_goes_with_its_version() -> None:
    plain = Ensemble.model_validate(ensemble())
    promised = plain.with_promise(ReviewPromise.model_validate(PROMISE))
    assert promised == Ensemble.model_validate(ensemble() | {"version": 2, "promise": PROMISE})
    assert promised.with_promise(None) == plain
    at_point = Ensemble.model_validate(ensemble_at(POINT) | {"promise": PROMISE | {"decision": DECISION}})
    assert at_point.with_promise(None) == Ensemble.model_validate(ensemble_at(POINT))


@pytest.mark.parametrize("point", [POINT | {"value": 0.9}, POINT | {"criterion": "npv"}, COSTS, None])
def test_a_promise_is_about_the_point_of_its_ensemble(tmp_path: Path, point: dict[str, Any] | None) -> None:
    content = ensemble_at(POINT) | {"operating_point": point, "promise": PROMISE | {"decision": DECISION}}
    with pytest.raises(
        MetadataError, match=r"promise: expected the value of the operating point, got sensitivity 0\.95"
    ):
        read_ensemble(written(tmp_path, content))


def test_a_point_needs_probabilities_and_version_2(tmp_path: Path) -> None:
    hard = ensemble() | {"version": 2, "operating_point": POINT}
    with pytest.raises(MetadataError, match="operating_point: not supported with mode hard"):
        read_ensemble(written(tmp_path, hard))
    with pytest.raises(MetadataError, match="version: expected 2 for these keys, got 1"):
        read_ensemble(written(tmp_path, ensemble_at(POINT) | {"version": 1}))


def test_a_site_comes_back_as_it_was_written(tmp_path: Path) -> None:
    site = {
        "name": "north",
        "data": "site.csv",
        "fingerprint": "0" * 64,
        "fit": "1" * 64,
        "images": 30,
        "patients": 20,
        "strength": 8.0,
    }
    whole = Ensemble.model_validate(ensemble() | {"version": 2, "site": site})
    write_metadata(tmp_path / "ensemble.json", whole)
    assert read_ensemble(tmp_path / "ensemble.json") == whole
    assert "site" not in Ensemble.model_validate(ensemble()).model_dump()
    for wrong, message in (({"strength": 0}, "strength"), ({"patients": 0}, "patients"), ({"name": "../up"}, "name")):
        with pytest.raises(MetadataError, match=f"site.{message}: "):
            read_ensemble(written(tmp_path, ensemble() | {"version": 2, "site": site | wrong}))


def test_a_file_of_version_0_1_0_is_read_and_written_unchanged(tmp_path: Path) -> None:
    """So Plurum 0.1.0 also reads what is written from it."""
    sample = Path(__file__).parent / "formats" / "ensemble_0.1.0.json"
    read = read_ensemble(sample)
    assert (read.version, read.operating_point, read.rule.point) == (1, None, None)
    write_metadata(tmp_path / "ensemble.json", read)
    assert (tmp_path / "ensemble.json").read_text() == sample.read_text()


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_member_can_not_take_a_name_of_the_repository(tmp_path: Path, name: str) -> None:
    content = ensemble()
    edit("members.0.name", name)(content)
    with pytest.raises(MetadataError, match=f"member name '{name}' is reserved"):
        read_ensemble(written(tmp_path, content))


@pytest.mark.parametrize("key", ["name", "classes", "image", "members", "voting", "data", "scores"])
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    content = ensemble()
    del content[key]
    with pytest.raises(MetadataError, match=f"{key}: Field required"):
        read_ensemble(written(tmp_path, content))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    content = ensemble() | {"colour": "red", "version": 9}
    with pytest.raises(MetadataError, match=r"version: .*; colour: "):
        read_ensemble(written(tmp_path, content))


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "\0", "NaN"])
def test_other_text_than_metadata_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MetadataError, match="file: "):
        read_ensemble(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match=r"nowhere\.json can't be read: No such file or directory"):
        read_member(tmp_path / "nowhere.json")


def test_metadata_of_a_member_are_refused_as_an_ensemble(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="is not valid ensemble metadata"):
        read_ensemble(written(tmp_path, member("one")))


def test_every_part_of_a_verdict_is_an_output() -> None:
    assert {output.field for output in (*VOTED.values(), *TESTED.values())} == set(Verdict.__dataclass_fields__)


@pytest.mark.parametrize("tag", ["a0000001", "00000102", "ffffffff"])
def test_a_version_tells_its_release(tag: str) -> None:
    assert release_from_version(str(version_from_release(tag))) == tag


@pytest.mark.parametrize("tag", ["", "one", "A0000001", "a000000", "a00000012"])
def test_a_release_that_is_not_a_tag_has_version_1(tag: str) -> None:
    assert version_from_release(tag) == 1


@pytest.mark.parametrize("version", ["1", "", "-1", "x", "²", str(1 << 32)])
def test_other_versions_tell_of_no_release(version: str) -> None:
    assert release_from_version(version) is None
