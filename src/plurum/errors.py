"""Everything Plurum raises on purpose.

    PlurumError                 one clear line for the person at the keyboard; exit code 2
    ├── DataError               labelled images that can't be learnt from
    │   └── ImageError          one image that can't be read
    ├── ContractError           an ensemble.json or member.json that is none
    ├── SettingsError           an option with a value that can't be used
    ├── OutputError             a place that can't be written to, or that holds something else
    ├── RepositoryError         a folder that is no model repository of ours
    ├── MissingExtraError       a package that an extra of the installation brings
    ├── ServerError             a server that does not start, is away, or refuses
    ├── BrokenOffError          what was begun and can be gone on with; exit code 3
    └── ParityError             an exported model that answers otherwise than its original; exit code 1

A message says what is wrong, what was received, what was expected and how to mend it, in one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

__all__ = [
    "BrokenOffError",
    "ContractError",
    "DataError",
    "ImageError",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "PlurumError",
    "RepositoryError",
    "ServerError",
    "SettingsError",
    "needs_extra",
]


class PlurumError(Exception):
    """What a user can mend; the command line prints its one line and exits with `exit_code`."""

    exit_code: ClassVar[int] = 2


class DataError(PlurumError):
    """Labelled images that can't be learnt from."""


class ImageError(DataError):
    """One image that can't be read: no image, truncated, too large, of a kind we don't take."""


class ContractError(PlurumError):
    """An `ensemble.json` or `member.json` that is missing, malformed or of another version."""


class SettingsError(PlurumError):
    """An option with a value that can't be used."""


class OutputError(PlurumError):
    """A place that can't be written to, or that holds something else."""


class RepositoryError(PlurumError):
    """A folder that is no model repository, or one that can't be served."""


class MissingExtraError(PlurumError):
    """A package that an extra of the installation brings is not installed."""


class ServerError(PlurumError):
    """A server that does not start, is away, or refuses what was asked."""


class BrokenOffError(PlurumError):
    """What was begun and could not be ended; the same command goes on with it."""

    exit_code: ClassVar[int] = 3


class ParityError(PlurumError):
    """An exported model that answers otherwise than the model it came from."""

    exit_code: ClassVar[int] = 1


@contextmanager
def needs_extra(extra: str, *modules: str) -> Iterator[None]:
    """Import `modules` and run a block that imports more, naming `extra` if any of them is missing.

    Raises:
        MissingExtraError: a package outside Plurum can't be found.
    """
    try:
        for module in modules:
            importlib.import_module(module)
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "plurum":
            raise
        raise MissingExtraError(
            f"this needs the package {error.name!r}, which is not installed; run: pip install 'plurum[{extra}]'"
        ) from error
