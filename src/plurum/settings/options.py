"""Command-line options of settings: a field's name, type, default and description also make its option."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from plurum.errors import SettingsError

__all__ = ["NOT_AN_OPTION", "Option", "Settings", "descriptions_from_docstring", "option_from_field", "settings_from"]

_S = TypeVar("_S", bound="Settings")


class Settings(BaseModel):
    """Base class of settings: immutable; unknown names are refused."""

    # The command line reads the fields of all settings and uses those of one command.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


@dataclass(frozen=True)
class Option:
    """Differences of an option from its field; metadata of the field's `Annotated` type.

    Attributes:
        name: Name of the option; empty takes `--` and the field's name.
        panel: Heading under which `--help` lists the option; empty takes the general one.
        metavar: Placeholder for the value in `--help`; empty takes the type's.
        type: Type that the command line passes to the field's validators; None takes the field's.
        is_offered: If False, the command line does not have the option.
        is_hidden: If True, `--help` does not show the option.
    """

    name: str = ""
    panel: str = ""
    metavar: str = ""
    type: Any = None
    is_offered: bool = True
    is_hidden: bool = False

    @classmethod
    def of(cls, kind: type[Settings], field: str) -> Option:
        """Return the option of a field."""
        found = (one for one in kind.model_fields[field].metadata if isinstance(one, Option))
        return next(found, _PLAIN)


_PLAIN = Option()
# For fields that only programs set.
NOT_AN_OPTION = Option(is_offered=False)


def settings_from(kind: type[_S], **values: Any) -> _S:
    """Return settings of type `kind` with these values.

    Raises:
        SettingsError: some values are invalid; the message names them all as command-line options.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        faults = (_fault(kind, **fault) for fault in error.errors(include_url=False))
        raise SettingsError("; ".join(faults)) from error


def option_from_field(kind: type[Settings], field: str) -> str:
    """Return the command-line option of a settings field, such as `--batch-size` for `batch_size`."""
    return Option.of(kind, field).name or f"--{field.replace('_', '-')}"


@functools.cache
def descriptions_from_docstring(kind: type) -> dict[str, str]:
    """Return the description of each attribute in the docstring of `kind`, by name."""
    attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _fault(kind: type[Settings], loc: tuple[int | str, ...], msg: str, input: object, **_: object) -> str:  # noqa: A002 - pydantic's name
    if not loc:
        return msg.removeprefix("Value error, ")
    expected = msg.removeprefix("Value error, ").replace("Input should be ", "expected ", 1)
    expected = re.sub("^expected (?=greater|less)", "expected a number ", expected)
    expected = re.sub(r"^\w+ should have (at \w+ \d+ \w+).*", r"expected \1", expected)
    return f"{option_from_field(kind, str(loc[0]))}: {expected}, got {input!r}"
