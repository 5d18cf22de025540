"""Exceptions that Plurum raises.

    PlurumError                 base class, shown as one line; exit code 2
    ├── DataError               labelled images that can't be used for training
    │   └── ImageError          an image that can't be read
    ├── MetadataError           an invalid ensemble.json or member.json
    ├── NoFeaturesError         a model without a layer whose inputs are features
    ├── SettingsError           an option with an invalid value
    ├── OutputError             an output path that can't be written to, or holds other files
    ├── RepositoryError         a folder that is not a model repository
    ├── MissingExtraError       a package of an extra that is not installed
    ├── ServerError             a server that does not start, is unavailable or refuses a request
    ├── InterruptedRunError     a run that stopped early and can be resumed; exit code 3
    └── ParityError             an exported model whose outputs differ from the original's; exit code 1
        └── CertificationError  exported models that don't keep the promise of the fit; exit code 1

A message states in one line what is wrong, what was received, what was expected and how to fix it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

__all__ = [
    "CertificationError",
    "DataError",
    "ImageError",
    "InterruptedRunError",
    "MetadataError",
    "MissingExtraError",
    "NoFeaturesError",
    "OutputError",
    "ParityError",
    "PlurumError",
    "RepositoryError",
    "ServerError",
    "SettingsError",
    "needs_extra",
    "port_error",
]


# Not part of any stage's extra, because a machine with a GPU needs another package.
_EXTRAS_OF_RUNTIMES = {"onnxruntime": "cpu"}


class PlurumError(Exception):
    """Base class of errors that the user can fix; the command line prints them as one line.

    Attributes:
        exit_code: Exit code of the command line.
    """

    exit_code: ClassVar[int] = 2


class DataError(PlurumError):
    """Labelled images can't be used for training."""


class ImageError(DataError):
    """An image can't be read: it is not an image, truncated, too large or of an unsupported kind."""


class MetadataError(PlurumError):
    """An `ensemble.json` or `member.json` is missing, malformed or of another version."""


# Former name.
ContractError = MetadataError


class NoFeaturesError(PlurumError):
    """A model has no layer whose inputs are one vector of features per image."""


class SettingsError(PlurumError):
    """An option has an invalid value."""


class OutputError(PlurumError):
    """An output path can't be written to, or holds other files."""


class RepositoryError(PlurumError):
    """A folder is not a model repository, or can't be served."""


class MissingExtraError(PlurumError):
    """A package of an installation extra is missing."""


class ServerError(PlurumError):
    """A server does not start, is unavailable or refuses a request."""


class InterruptedRunError(PlurumError):
    """A run stopped early; the same command resumes it."""

    exit_code: ClassVar[int] = 3


class ParityError(PlurumError):
    """Outputs of an exported model differ from those of its original."""

    exit_code: ClassVar[int] = 1


class CertificationError(ParityError):
    """Outputs of exported models don't keep what the fit promised with those of their originals.

    Args:
        message: Message, one line.
        refused: Precision, form and figures of the refused certification, for the run's report; None if there are none.
    """

    def __init__(self, message: str, refused: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.refused = refused


@contextmanager
def needs_extra(extra: str, *modules: str) -> Iterator[None]:
    """Import `modules` and run the block, which may import more; name `extra` if a package is missing.

    For ONNX Runtime the extra is `cpu`, whatever `extra` is.

    Raises:
        MissingExtraError: a third-party package is missing.
    """
    try:
        for module in modules:
            importlib.import_module(module)
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"", "plurum"}:
            raise
        extra = _EXTRAS_OF_RUNTIMES.get(package, extra)
        raise MissingExtraError(
            f"package {error.name!r} is not installed; run: pip install 'plurum[{extra}]'"
        ) from error


def port_error(option: str, port: int, host: str, error: OSError) -> ServerError:
    """Return the error of a port that can't be listened on; its message names `option` as the one to change."""
    # The error's own text may repeat the address; a failed name lookup has a negative errno.
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return ServerError(
        f"{option}: expected a port that can be listened on, got {port} on {host}: {reason}. "
        f"Stop the program that uses it, or change {option}."
    )
