"""Standard input, output and error, whatever this process was started with."""

from __future__ import annotations

import codecs
import os
import sys

__all__ = ["close_output", "prepare_streams"]

_HANDLER = "plurum"


def prepare_streams() -> None:
    """Open those that are closed on nothing, and let every text be written to standard output.

    Bytes of a path that are not text come out as they are; letters that the locale does not have, as their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file to be opened would get this number, and what is meant for the terminal would go into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error(_HANDLER, _encode)
    # Tests and notebooks put something else in its place.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors=_HANDLER)


def close_output() -> None:
    """Throw away what can't be written to standard output, which Python would try again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_encoded, text)), error.end


def _encoded(letter: str) -> bytes:
    if "\udc80" <= letter <= "\udcff":
        return letter.encode("utf-8", "surrogateescape")
    return letter.encode("ascii", "backslashreplace")
