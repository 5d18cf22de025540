"""Keys of permitted clients, read from a file; only their hashes stay in memory."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from plurum.errors import SettingsError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = ["Keys", "read_keys"]

_log = logging.getLogger(__name__)

_HASHED = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64}):(?P<digest>[0-9a-f]{64})")
# Length of the output of `openssl rand -hex 8`; shorter keys could be guessed.
_SHORTEST = 16


class Keys:
    """The keys of a file.

    Args:
        digests: SHA-256 of each key, by the name of its owner.
    """

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    @property
    def names(self) -> list[str]:
        """Names of the owners, sorted."""
        return sorted(self._digests)

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the owner of the key in `headers` (lower-case names), or None.

        Every key is compared in constant time.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        presented = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        owner = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                owner = name
        return owner


def read_keys(path: Path) -> Keys:
    """Return the keys of a file, one per line: the key itself, or NAME:SHA256 with the key's hash in hexadecimal.

    Empty lines and lines that start with # are ignored. A key given without a name is named after its line.

    Raises:
        SettingsError: the file can't be read, holds no key, or has an invalid line.
    """
    try:
        lines = read_regular(path, MAX_SECRET_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"--keys: expected a readable text file, got {path}: {reason}. Give another file."
        ) from error
    if path.stat().st_mode & 0o077:
        _log.warning("other users of this machine can read the keys in %s; run: chmod 600 %s", path, path)
    digests: dict[str, bytes] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if hashed := _HASHED.fullmatch(line):
            name, digest = hashed["name"], bytes.fromhex(hashed["digest"])
        elif len(line) >= _SHORTEST and line.isascii() and " " not in line:
            name, digest = f"line-{number}", hashlib.sha256(line.encode()).digest()
        else:
            # Don't show the line: it may be a secret.
            raise SettingsError(
                f"--keys: expected {_SHORTEST} or more ASCII characters without spaces, or NAME:SHA256, got an invalid "
                f"line {number} of {path}. Correct the line."
            )
        if name in digests or digest in digests.values():
            raise SettingsError(
                f"--keys: expected different names and keys, got a repeated one in line {number} of {path}. "
                "Remove the line."
            )
        digests[name] = digest
    if not digests:
        raise SettingsError(
            f"--keys: expected at least one key, got none in {path}. Add one, for example from: openssl rand -hex 32"
        )
    return Keys(digests)
