"""Statements about an ensemble's use, which only its owner can make: RUN/intended_use.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from plurum.errors import SettingsError
from plurum.regular_files import read_regular
from plurum.spec import Metadata

__all__ = ["IntendedUse", "read_intended_use"]

_MOST_BYTES = 1 << 20


def _one_line(text: str) -> str:
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if not line:
        raise ValueError("expected a text, got an empty one")
    return line


Statement = Annotated[str, Field(max_length=10_000), AfterValidator(_one_line)]


class IntendedUse(Metadata):
    """Statements of the owner of an ensemble, as plain text. None and empty lists are not stated.

    Attributes:
        purpose: Task that the ensemble was made for.
        users: People who may use its predictions, and their training.
        out_of_scope: Uses and patients that the ensemble was not made for.
        limits: Known limits, one sentence each.
        contact: Person or address that answers questions about the ensemble.
        licence: Licence of the ensemble.
    """

    purpose: Statement | None = None
    users: Statement | None = None
    out_of_scope: tuple[Statement, ...] = ()
    limits: tuple[Statement, ...] = ()
    contact: Statement | None = None
    licence: Statement | None = None


def read_intended_use(path: Path) -> IntendedUse:
    """Return the statements in a JSON file.

    Raises:
        SettingsError: the file can't be read, is not JSON, has an unknown key, or a value is not a text.
    """
    try:
        return IntendedUse.model_validate_json(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise SettingsError(f"--intended-use: {path} can't be read: {error.strerror}. Name a JSON file.") from error
    except ValidationError as error:
        faults = "; ".join(_fault(**fault) for fault in error.errors(include_url=False))
        raise SettingsError(f"--intended-use: {path}: {faults}. Correct the file.") from error


def _fault(loc: tuple[int | str, ...], msg: str, **rest: Any) -> str:
    if rest["type"] == "extra_forbidden":
        return f"unknown key {loc[0]!r}; available: {', '.join(IntendedUse.model_fields)}"
    return f"{'.'.join(map(str, loc)) or 'file'}: {msg.removeprefix('Value error, ')}"
