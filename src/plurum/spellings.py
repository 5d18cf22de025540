"""Spellings of names: different ones of one name, such as `CE` and `ce`, `1` and `1.0`; and similar names."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

from plurum.errors import DataError

__all__ = ["check_spellings", "nearest_name"]

# Spreadsheets show 7, 7.0 and 007 in the same way.
_NUMBER = re.compile(r"(-?)\+?0*([0-9]+?)(?:\.([0-9]*?)0*)?")


def check_spellings(where: object, noun: str, plural: str, names: Iterable[str]) -> None:
    """Check that no two of `names` are spellings of the same name.

    Args:
        where: Source of the names, for the message.
        noun: Kind of thing that is named, such as `class`.
        plural: Plural of `noun`.
        names: Distinct names.

    Raises:
        DataError: two names are spellings of the same name; the message has both.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_plain(name), name)
        if other != name:
            one, two = sorted((other, name))
            # Show code points of letters that look the same.
            alike = unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", two)
            shown = f"{one!a} and {two!a}" if alike else f"{one!r} and {two!r}"
            raise DataError(
                f"{where} has the {plural} {shown}, which are one name in different spellings (case, blanks, Unicode "
                f"form, or a number such as 1 and 1.0); use one spelling per {noun}, and names that differ in more"
            )


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the name most similar to `name`; empty if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _plain(name: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
    if number := _NUMBER.fullmatch(plain):
        sign, whole, part = number.groups()
        return f"{sign}{whole}.{part or ''}"
    # Case folding decomposes some letters.
    return unicodedata.normalize("NFKC", plain)
