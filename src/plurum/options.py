"""From options of a command to its settings."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from plurum.errors import SettingsError

__all__ = ["settings_from"]

_S = TypeVar("_S", bound=BaseModel)


def settings_from(kind: type[_S], **values: Any) -> _S:
    """Return the settings that `values` state.

    Raises:
        SettingsError: some can't be used; all of them are named, as options of the command line.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_fault(**fault) for fault in error.errors(include_url=False))) from error


def _fault(loc: tuple[int | str, ...], msg: str, input: object, **_: object) -> str:  # noqa: A002 - pydantic's name
    if not loc:
        return msg.removeprefix("Value error, ")
    return f"--{str(loc[0]).replace('_', '-')} is {input!r}: {msg}"
