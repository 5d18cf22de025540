"""Break what is whole, at random, for a while: all fuzz tests share this.

`PLURUM_FUZZ_SECONDS` says for how long each test runs (5), `PLURUM_FUZZ_SEED` repeats one that failed.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from plurum.errors import PlurumError

__all__ = ["Fuzz", "broken_bytes", "broken_json", "draws", "places_in"]

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, -1e308, 1e-320, float("nan"), float("inf"), "", "0", "nan"),
    *("\0", "\ud800", "a" * 3000, "../../etc/passwd", "/dev/zero", "ensemble", [], {}, [[]], [None], {"a": 1}),
)
_ODD_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b",",
    b";",
    b'"',
    b"\t",
    b"nan",
    b"-",
    b"9" * 30,
    b"[" * 2000,
)


def _seed() -> int:
    return int(os.environ.get("PLURUM_FUZZ_SEED") or time.time_ns() % 10**9)


def draws(name: str, seed: int | None = None, told: Callable[[], str] = lambda: "") -> Iterator[random.Random]:
    """Yield a source of randomness for each input until the time is over, and say at the end how many there were.

    Args:
        name: Of what is fed.
        seed: To repeat it with.
        told: What else is said at the end.
    """
    seed = _seed() if seed is None else seed
    end_s = time.monotonic() + float(os.environ.get("PLURUM_FUZZ_SECONDS", "5"))
    inputs = 0
    try:
        while time.monotonic() < end_s:
            inputs += 1
            yield random.Random(f"{seed}/{inputs}")
    finally:
        sys.stdout.write(f"\nfuzz {name}: {inputs:,} inputs{told()}, seed {seed}\n")


@dataclass
class Fuzz:
    """One fuzz test: draws from its own seed, counts, and says how many inputs it gave.

    Attributes:
        name: Of what is fed.
        seed: To repeat it with.
        inputs: Given so far.
        read: Those that were taken; the others were refused by name.
    """

    name: str
    seed: int = field(default_factory=_seed)
    inputs: int = 0
    read: int = 0

    def draws(self) -> Iterator[random.Random]:
        """Yield a source of randomness for each input, until the time is over."""
        for draw in draws(self.name, self.seed, lambda: f", {self.read:,} of them read"):
            self.inputs += 1
            yield draw

    def fed(self, read: Callable[[], Any], content: bytes) -> Any:
        """Return what `read` makes of an input, or None where it is refused in one line; all else fails the test."""
        try:
            result = read()
        except PlurumError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{self}: {error!r:.300} for {len(content):,} bytes {content[:3000]!r}") from error
        else:
            self.read += 1
            return result
        # As the command line prints it: ends of lines that names and values have are blanks there.
        assert refusal.strip(), f"{self}: no message for {content[:300]!r}"
        return None


def broken_bytes(draw: random.Random, data: bytes, most: int = 4) -> bytes:
    """Return `data` with up to so many faults: bits turned, parts lost, repeated, moved or put in."""
    for _ in range(draw.randint(0, most)):
        start = draw.randint(0, len(data))
        end = min(len(data), start + draw.choice((1, 2, 8, 64, len(data))))
        part = data[start:end]
        part = draw.choice(
            (
                b"",
                part + part,
                bytes(byte ^ 1 << draw.randrange(8) for byte in part[:1]) + part[1:],
                draw.randbytes(len(part[:16])),
                draw.choice(_ODD_BYTES),
                data[end : end + 16] + part,
                draw.choice(_ODD_BYTES) + part,
            )
        )
        data = data[:start] + part + data[end:]
    return data


def broken_json(draw: random.Random, document: Any) -> bytes:
    """Return a JSON document with some of its values exchanged, lost, renamed or of another kind, in some encoding."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.randint(0, 3)):
        places = list(places_in(document))
        if not places:
            break
        holder, key = draw.choice(places)
        other_holder, other_key = draw.choice(places)
        action = draw.randrange(5)
        if action == 0:
            # A copy: lists and objects among them are broken further.
            holder[key] = copy.deepcopy(draw.choice(_ODD_VALUES))
        elif action == 1:
            holder[key] = json.loads(json.dumps(other_holder[other_key]))
        elif action == 2:
            del holder[key]
        elif action == 3 and isinstance(holder, dict):
            holder[draw.choice(("version", "more", "name", "", str(key).upper()))] = holder.pop(key)
        elif isinstance(holder[key], float):
            holder[key] *= draw.choice((-1, 0, 0.5, 1.0000001, 2, 1e9))
    text = json.dumps(document, ensure_ascii=draw.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return broken_bytes(draw, data, 2) if draw.random() < 0.2 else data


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value: what holds it, and its key or index there."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places_in(inner)
