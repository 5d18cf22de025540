"""Who may ask: keys in a file, of which nothing but the hashes is kept in memory."""

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
# What `openssl rand -hex 8` gives is the least that can't be tried out.
_SHORTEST = 16


class Keys:
    """The keys of a file.

    Args:
        digests: SHA-256 of each key, by the name of who has it.
    """

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    @property
    def names(self) -> list[str]:
        """Who has one."""
        return sorted(self._digests)

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of who sent the key in `headers` (lower case), or None.

        Every key is compared, each in a time that does not depend on where it differs.
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
    """Return the keys of a file: a line each, either the key itself or NAME:SHA256, the key's hash in hexadecimal.

    Empty lines and those that begin with # don't count. A key that stands there itself is called after its line.

    Raises:
        SettingsError: it can't be read, holds no key, or a line of it is none.
    """
    try:
        lines = read_regular(path, MAX_SECRET_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise SettingsError(f"the keys in {path} can't be read: {reason}") from error
    if path.stat().st_mode & 0o077:
        _log.warning("others on this machine can read the keys in %s; run: chmod 600 %s", path, path)
    digests: dict[str, bytes] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if hashed := _HASHED.fullmatch(line):
            name, digest = hashed["name"], bytes.fromhex(hashed["digest"])
        elif len(line) >= _SHORTEST and line.isascii() and " " not in line:
            name, digest = f"line-{number}", hashlib.sha256(line.encode()).digest()
        else:
            # The line itself may be a secret.
            raise SettingsError(
                f"line {number} of {path} is no key: {_SHORTEST} or more ASCII characters without spaces, "
                "or NAME:SHA256 are needed"
            )
        if name in digests or digest in digests.values():
            raise SettingsError(f"line {number} of {path} repeats a name or a key")
        digests[name] = digest
    if not digests:
        raise SettingsError(f"there is no key in {path}; one a line is needed (openssl rand -hex 32 makes one)")
    return Keys(digests)
