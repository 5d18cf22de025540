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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from plurum.errors import PlurumError
from plurum.serving.gateway.refusals import RefusalError

__all__ = ["Fuzz", "broken_bytes", "broken_json", "draws", "json_bytes", "odd_json", "outcome"]

T = TypeVar("T")

_ODD_BYTES = (
    *(b"", b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b";", b'"', b"=", b",", b"-", b"--", b"\xff"),
    *(b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xb2", b"%00", b"nan", b"NaN", b"-1", b"1e400"),
    *(b"9" * 30, b"9" * 5000, b"[" * 3000, b"{" * 3000),
)
_ODD_TEXTS = (
    *("", "0", "1", "nan", "true", "\0", "\ud800", "é", "x\r\ny", "a" * 3000, "../../etc/passwd", "/dev/zero"),
    *("ensemble", "IMAGE", "IMAGE\0", "PIXELS", "LABEL", "BYTES", "UINT8", "FP32", "iVBORw0KGgo=", "/9j/4AAQ"),
    *("binary_data_size", "shared_memory_region", "timeout", "priority", "version", "more", "name"),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1.0, -0.0, 1e308, -1e308),
    *(1e-320, float("nan"), float("inf"), [], {}, [[]], [None], [[1], [2, 3]], {"a": 1}, *_ODD_TEXTS),
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


def broken_bytes(draw: random.Random, data: bytes, most: int = 4, words: Sequence[bytes] = ()) -> bytes:
    """Return `data` with up to `most` faults: bits turned, bytes lost, repeated, moved, or odd ones put in."""
    odd = (*_ODD_BYTES, *words)
    for _ in range(draw.randint(0, most)):
        start, other = draw.randint(0, len(data)), draw.randint(0, len(data))
        end = min(len(data), start + draw.choice((0, 1, 2, 8, 64, len(data))))
        part = data[start:end]
        turned = bytes(byte ^ 1 << draw.randrange(8) for byte in part[:1]) + part[1:]
        repeated, moved = part + part, data[other : other + 40] + part
        part = draw.choice(
            (b"", repeated, turned, moved, draw.randbytes(len(part[:16])), draw.choice(odd), draw.choice(odd) + part)
        )
        data = data[:start] + part + data[end:]
    return data


def odd_json(draw: random.Random, value: Any) -> Any:
    """Return a JSON value with some parts exchanged, lost, renamed, repeated or of another kind."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(0, 3)):
        places = list(_places_in(value))
        if not places:
            break
        holder, key = draw.choice(places)
        other, other_key = draw.choice(places)
        action = draw.randrange(5)
        if action == 0:
            # A copy: lists and objects among them are broken further.
            holder[key] = copy.deepcopy(draw.choice(_ODD_VALUES))
        elif action == 1:
            holder[key] = copy.deepcopy(other[other_key])
        elif action == 2:
            del holder[key]
        elif action == 3 and isinstance(holder, dict):
            holder[draw.choice((*_ODD_TEXTS, str(key).upper()))] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(0, holder[key])
        elif isinstance(holder[key], float):
            holder[key] *= draw.choice((-1, 0, 0.5, 1.0000001, 2, 1e9))
    return value


def json_bytes(draw: random.Random, value: Any) -> bytes:
    """Return a JSON value as text in some encoding, invalid where it holds surrogates."""
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def broken_json(draw: random.Random, document: Any) -> bytes:
    """Return a JSON document whose values, and sometimes its bytes, are broken."""
    data = json_bytes(draw, odd_json(draw, document))
    return broken_bytes(draw, data, 2) if draw.random() < 0.2 else data


def _places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value: what holds it, and its key or index there."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places_in(inner)


def outcome(read: Callable[[], T], sent: object) -> T | None:
    """Return what was read of a request, or None where it was refused in a line; anything else is a finding."""
    try:
        return read()
    except RefusalError as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{error!r:.200} for {sent!r:.3000}") from error
    assert refusal.status in {400, 413, 415}, refusal
    assert refusal.text.isprintable(), refusal.text
    assert len(refusal.text) < 400
    return None
