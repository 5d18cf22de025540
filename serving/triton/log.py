"""Triton's log: forwarded line by line, and searched for why a server failed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import BinaryIO, ClassVar

from plurum.errors import ServerError

__all__ = ["TritonLog"]

_log = logging.getLogger(__name__)

# E0102 03:04:05.678901 23 model_lifecycle.cc:654] "failed to load 'x' version 1: Internal: …"
_ERROR = re.compile(r'^E\d{4} [^\]]*\] "?(?P<text>.*)')
_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)", re.DOTALL)
# A stack trace, its line ends written as two characters; the log keeps it.
_TRACE = re.compile(r"\\n\\n?At:.*", re.DOTALL)
_STOPPED = b'"All models are stopped, unloading models"'
# An error at every start without a GPU.
_HARMLESS = ("CudaDriverHelper has not been initialized",)
_LONGEST = 400


class TritonLog:
    """The file that Triton's output goes to."""

    _kept: ClassVar[Path | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def create(self) -> BinaryIO:
        """Return the file, new, empty and closed to other users, to write to.

        It names patients' images where requests fail; in a temporary folder that others write to, too, a name that is
        taken is somebody's trap.

        Raises:
            ServerError: it can't be made.
        """
        try:
            # Of a start before this one.
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServerError(f"Triton's log {self.path} can't be made: {error.strerror}") from error
        return open(descriptor, "wb")  # noqa: PTH123 (by descriptor; the caller closes it)

    def keep(self) -> None:
        """Leave the file for people to read, in place of the one that this process kept before.

        Clients that end Triton again and again would fill the disk otherwise.
        """
        former, TritonLog._kept = TritonLog._kept, self.path
        if former is not None and former != self.path:
            former.unlink(missing_ok=True)

    def forward(self) -> None:
        """Pass what has been added since the last call to `logging`, at level DEBUG."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        # A line that is still being written waits for its end.
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            _log.debug("%s", line)

    def size(self) -> int:
        """Return how many bytes the log has."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def load_failure(self, model: str, since: int) -> str | None:
        """Return why Triton could not load a model, shortened, or None where it has not logged a failure.

        Args:
            model: The model's name.
            since: Offset in bytes into the log; failures before it are ignored.
        """
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")
        for match in map(_ERROR.match, text.splitlines()):
            failure = match and _FAILED.search(match["text"])
            if failure and failure["model"] == model:
                return _shortened(failure["reason"])
        return None

    def says_stopped(self) -> bool:
        """Return whether Triton has logged that no request is left, and that it unloads its models."""
        return self.path.is_file() and _STOPPED in self.path.read_bytes()

    def reason(self) -> str:
        """Return the first model's failure, else the first error, else the last line, shortened."""
        text = self.path.read_text(errors="replace") if self.path.is_file() else ""
        errors = [match["text"] for match in map(_ERROR.match, text.splitlines()) if match]
        errors = [error for error in errors if not error.startswith(_HARMLESS)]
        failures = [match for match in map(_FAILED.search, errors) if match]
        if failures:
            reason = f"model {failures[0]['model']!r} can't be loaded: {failures[0]['reason']}"
        else:
            reason = next(iter(errors or text.splitlines()[-1:]), "its log is empty")
        return _shortened(reason)


def _shortened(reason: str) -> str:
    return _TRACE.sub("", reason).strip().removesuffix('"')[:_LONGEST]
