"""Settings from the options of a command."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from plurum.errors import SettingsError

__all__ = ["option_from_field", "settings_from"]

_S = TypeVar("_S", bound=BaseModel)


def settings_from(kind: type[_S], **values: Any) -> _S:
    """Return settings of type `kind` with these values.

    Raises:
        SettingsError: some values are invalid; the message names them all as command-line options.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_fault(**fault) for fault in error.errors(include_url=False))) from error


def option_from_field(name: str) -> str:
    """Return the command-line option of a settings field, such as `--batch-size` for `batch_size`."""
    return "--arch" if name == "archs" else f"--{name.replace('_', '-')}"


def _fault(loc: tuple[int | str, ...], msg: str, input: object, **_: object) -> str:  # noqa: A002 - pydantic's name
    if not loc:
        return msg.removeprefix("Value error, ")
    expected = msg.removeprefix("Value error, ").replace("Input should be ", "expected ", 1)
    expected = re.sub("^expected (?=greater|less)", "expected a number ", expected)
    return f"{option_from_field(str(loc[0]))}: {expected}, got {input!r}"
