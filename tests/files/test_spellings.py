from __future__ import annotations

import pytest

from plurum.errors import DataError
from plurum.spellings import check_spellings


@pytest.mark.parametrize(
    "pair",
    [
        ("CE", "ce"),
        ("1", "1.0"),
        ("1", "01"),
        ("-2.50", "-2.5"),
        ("0", "0.0"),
        ("Hämatom", "Ha\u0308matom"),
        ("grade 1", "grade  1"),
        ("grade 1", "grade\u00a01"),
        ("STRASSE", "straße"),
        ("１", "1"),
    ],
)
def test_two_spellings_of_one_name_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"a\.csv has the labels .* and .*, which are one name") as caught:
        check_spellings("a.csv", "label", "labels", ["other", *pair])
    shown = str(caught.value)
    # The message distinguishes the two.
    words = shown.split("the labels ")[1].split(", which", maxsplit=1)[0].split(" and ")
    assert len(set(words)) == 2


@pytest.mark.parametrize(
    "names", [("CE", "LAA"), ("1", "10"), ("0.1", "1"), ("10", "100"), ("-1", "1"), ("1.2.3", "1.2.30"), ("0", "00x")]
)
def test_names_that_differ_are_not(names: tuple[str, ...]) -> None:
    check_spellings("a.csv", "label", "labels", names)


def test_a_long_number_is_compared_to_its_last_digit() -> None:
    check_spellings("a.csv", "patient", "patients", ["9" * 400 + "1", "9" * 400 + "2"])
