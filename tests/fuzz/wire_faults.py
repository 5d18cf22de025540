"""Break requests at random: the fuzz tests of what comes over the network share this, beside `mutations`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from plurum.serving.gateway.refusals import RefusalError
from tests.fuzz.mutations import places_in

__all__ = ["broken", "odd_json", "outcome"]

T = TypeVar("T")

_ODD_BYTES: tuple[bytes, ...] = (
    *(
        b"",
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b";",
        b'"',
        b"=",
        b",",
        b"--",
        b"\xff",
        b"\xc3\xa9",
    ),
    *(
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xb2",
        b"%00",
        b"NaN",
        b"-1",
        b"1e400",
        b"9" * 5000,
        b"[" * 3000,
        b"{" * 3000,
    ),
)
_ODD_TEXTS: tuple[str, ...] = (
    *(
        "",
        "0",
        "1",
        "\0",
        "\ud800",
        "é",
        "a" * 3000,
        "IMAGE",
        "IMAGE\0",
        "PIXELS",
        "LABEL",
        "BYTES",
        "UINT8",
        "FP32",
        "x\r\ny",
    ),
    *("nan", "true", "iVBORw0KGgo=", "/9j/4AAQ", "binary_data_size", "shared_memory_region", "timeout", "priority"),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1.0, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), [], {}, [[]], [None], [[1], [2, 3]], {"a": 1}, *_ODD_TEXTS),
)


def outcome(read: Callable[[], T], sent: object) -> T | None:
    """Return what was read, or None where it was refused in a line; anything else is a finding."""
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


def broken(draw: random.Random, data: bytes, most: int = 4, words: Sequence[bytes] = ()) -> bytes:
    """Return `data` with up to so many faults: parts lost, repeated, moved, or others put in."""
    odd = (*_ODD_BYTES, *words)
    for _ in range(draw.randint(0, most)):
        start = draw.randint(0, len(data))
        end = min(len(data), start + draw.choice((0, 1, 2, 8, 64, len(data))))
        part = data[start:end]
        other = draw.randint(0, len(data))
        new = draw.choice(
            (b"", part + part, draw.randbytes(3), draw.choice(odd), draw.choice(odd), data[other : other + 40] + part)
        )
        data = data[:start] + new + data[end:]
    return data


def odd_json(draw: random.Random, value: Any) -> Any:
    """Return a JSON value with some parts exchanged, lost, renamed, repeated or of another kind."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(0, 3)):
        places = list(places_in(value))
        if not places:
            break
        holder, key = draw.choice(places)
        action = draw.randrange(5)
        if action < 2:
            holder[key] = copy.deepcopy(draw.choice(_ODD_VALUES))
        elif action == 2:
            other, other_key = draw.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
        elif action == 3 and isinstance(holder, dict):
            holder[draw.choice(_ODD_TEXTS)] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(0, holder[key])
        else:
            del holder[key]
    return value
