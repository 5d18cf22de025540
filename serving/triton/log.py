"""Triton's log: forward its lines to `logging`, and search it for the reason of a failure."""

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
# A Python traceback whose line breaks are escaped; messages leave it out, the log file keeps it.
_TRACE = re.compile(r"\\n\\n?At:.*", re.DOTALL)
_STOPPED = b'"All models are stopped, unloading models"'
_PORT_IN_USE = re.compile(rb"^E\d{4} .*already in use", re.MULTILINE | re.IGNORECASE)
# The type of an error that Python code raised.
_REFUSED = b"TritonModelException"
# Triton logs these errors at every start without a GPU, the second for each ensemble.
_HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream for ")
_LONGEST = 400


class TritonLog:
    """The log file that receives Triton's output."""

    _kept: ClassVar[Path | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def create(self) -> BinaryIO:
        """Create the log file, closed to other users, and return it opened for writing.

        The log names patients' images of failed requests. Other users write to the temporary folder too, so a file
        that already has this name is never opened.

        Raises:
            ServerError: the file can't be created.
        """
        try:
            # An earlier start may have left one.
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServerError(f"Triton's log {self.path} can't be created: {error.strerror}") from error
        return open(descriptor, "wb")  # noqa: PTH123 (by descriptor; the caller closes it)

    def keep(self) -> None:
        """Keep the log file for inspection, and remove the one that this process kept before.

        Repeated crashes would otherwise fill the disk.
        """
        former, TritonLog._kept = TritonLog._kept, self.path
        if former is not None and former != self.path:
            former.unlink(missing_ok=True)

    def forward(self) -> None:
        """Pass the lines added since the last call to `logging`, at level DEBUG."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        # Leave an incomplete last line for the next call.
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            _log.debug("%s", line)

    def size(self) -> int:
        """Return the size of the log in bytes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def load_failure(self, model: str, since: int) -> str | None:
        """Return the shortened reason why Triton could not load a model, or None if it logged no failure.

        Args:
            model: Name of the model.
            since: Offset into the log, bytes; earlier failures are ignored.
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

    def has_stopped(self) -> bool:
        """Return True if Triton has logged that no request is left and that it unloads its models."""
        return self.path.is_file() and _STOPPED in self.path.read_bytes()

    def has_lost_port(self) -> bool:
        """Return True if Triton has logged that another program listens on one of its ports."""
        return self.path.is_file() and _PORT_IN_USE.search(self.path.read_bytes()) is not None

    def has_model_error(self) -> bool:
        """Return True if Triton has logged that a Python model or backend refused to load; it would do so again."""
        return self.path.is_file() and _REFUSED in self.path.read_bytes()

    def reason(self) -> str:
        """Return the first model's load failure, else the first error, else the last line, shortened."""
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
