"""Names that a person takes for one, and a computer for two: `CE` and `ce`, `1` and `1.0`, NFC and NFD."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["check_spellings"]

# A spreadsheet shows 7, 7.0 and 007 alike.
_NUMBER = re.compile(r"(-?)\+?0*([0-9]+?)(?:\.([0-9]*?)0*)?")


def check_spellings(where: object, noun: str, plural: str, names: Iterable[str]) -> None:
    """Make sure that no two of `names` are spellings of one.

    Args:
        where: What they are of, for the message.
        noun: What they name, such as `class`.
        plural: Of `noun`.
        names: Each once.

    Raises:
        ValueError: two are; both are named.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_plain(name), name)
        if other != name:
            one, two = sorted((other, name))
            # Letters that look alike are told by their numbers.
            alike = unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", two)
            shown = f"{one!a} and {two!a}" if alike else f"{one!r} and {two!r}"
            raise ValueError(
                f"{where} has the {plural} {shown}, which are one name in different spellings (case, blanks, Unicode "
                f"form, or a number such as 1 and 1.0); spell one {noun} alike everywhere, and name two so that they "
                f"differ in more than that"
            )


def _plain(name: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
    if number := _NUMBER.fullmatch(plain):
        sign, whole, part = number.groups()
        return f"{sign}{whole}.{part or ''}"
    # Some letters fall apart as their case is folded.
    return unicodedata.normalize("NFKC", plain)
