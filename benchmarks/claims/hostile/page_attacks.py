"""Attacks on the page, and on the keys of a gateway."""

from __future__ import annotations

import hashlib

from plurum.benchmarks.claims.hostile.attack import EITHER, REFUSED, Attacker, Kind
from plurum.benchmarks.tools.wire import http_request

__all__ = ["KEYS", "PAGE"]

_HOSTS = (
    "evil.example", "evil.example:8085", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1",
    "127.0.0.1@evil.example",
    "127.0.0.1:99999999", "127.0.0.1:x", "a" * 5000, "evil.example, 127.0.0.1", "127.0.0.1/..", "\t", "％",
)  # fmt: skip
_NAMES = (
    "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 9000, "<script>alert(1)</script>.png",
    "=cmd|'/c calc'!A1",
    "%E2%80%AE.png", "\udcff", "%ud800", "C:\\x\\..\\y", "%0d%0aset-cookie:%20a=b", ".", "/", "%ff%fe",
)  # fmt: skip
_SEEN = (
    "9" * 5000, "-1", "1e9", "٣", "²", "", "0x1", " 1", "1 ", "9" * 400, "18446744073709551616", "9223372036854775808",
    "None",
)  # fmt: skip
_STATIC = (
    "../app.py", "..%2fapp.py", "%2e%2e/app.py", "....//app.py", "%00", "..\\app.py", "/etc/passwd", "a" * 3000, ".",
    "con",
)  # fmt: skip
_KEYS = (
    "", "Bearer", "Bearer ", "Basic YTpi", "bearer x", "Bearer " + "x" * 9000, "Bearer \udcff", "Bearer null",
    "Digest a=b",
)  # fmt: skip


def _sha(attacker: Attacker) -> str:
    known = hashlib.sha256(attacker.image()).hexdigest()
    odd = ("..%2f..%2fx", "x" * 3000, "%00", "' OR 1=1 --", known.upper(), known[:-1], "0" * 64, "%ff")
    return attacker.choose(*odd).replace(" ", "%20")


def _another_site(attacker: Attacker) -> list[int]:
    """Decide about an honest image, as a script of another site would."""
    known = hashlib.sha256(attacker.image()).hexdigest()
    path = attacker.choose(
        f"/review/{known}", f"/review/{known}/undo", f"/review/{known}/delete", f"/answers/{known}/review", "/answers"
    )
    headers = attacker.choose(
        {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}, {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1.evil.example"}, {"origin": "https://127.0.0.1"}, {"origin": "http://127.0.0.1:1"},
    )  # fmt: skip
    body = b"label=class+0&seen=0"
    sent = http_request("POST", path, body, content_type="application/x-www-form-urlencoded", **headers)
    # As browsers do: the port distinguishes this page from a site on another port of this machine.
    return [attacker.kept(sent.replace(b"host: 127.0.0.1", b"host: 127.0.0.1:%d" % attacker.place.port, 1))]


def _hosts(attacker: Attacker) -> list[int]:
    host = attacker.choose(*_HOSTS).encode()
    sent = http_request("GET", attacker.choose("/", "/review", "/corrections.csv", "/static/page.js"))
    return [attacker.alone(sent.replace(b"host: 127.0.0.1", b"host: " + host), 3.0)]


def _file_names(attacker: Attacker) -> list[int]:
    return [attacker.send("POST", "/answers", attacker.image(), x_file_name=attacker.choose(*_NAMES))]


def _decisions(attacker: Attacker) -> list[int]:
    seen = attacker.choose(*_SEEN)
    label = attacker.choose("class 0", "", "x" * 9000, "%00", "%ff", "\udcff")
    path = f"/review/{_sha(attacker)}" + attacker.choose("", "/undo", "/delete")
    return [attacker.send("POST", path, f"label={label}&seen={seen}".encode("utf-8", "surrogateescape"))]


def _stale(attacker: Attacker) -> list[int]:
    """Send forms of an image that is not kept, that was decided before, and that was deleted."""
    image = attacker.image() + attacker.chance.randbytes(3)
    known = hashlib.sha256(image).hexdigest()
    first = attacker.send("POST", "/answers", image)
    kept = attacker.send("POST", f"/answers/{known}/review")
    seen = attacker.choose(*_SEEN)
    forms = [attacker.send("POST", f"/review/{known}", f"label=class+0&seen={seen}".encode()) for _ in range(2)]
    undone = attacker.send("POST", f"/review/{known}/undo", f"seen={seen}".encode())
    gone = attacker.send("POST", f"/review/{known}/delete")
    late = attacker.send("POST", f"/review/{known}", f"label=class+0&seen={seen}".encode())
    return [first, kept, *forms, undone, gone, late]


def _huge_forms(attacker: Attacker) -> list[int]:
    body = attacker.choose(
        b"a=b&" * 500_000, b"label=" + bytes(3 << 20), b"&" * (1 << 16), b"%" * 60_000, b"a" * 70_000
    )
    return [attacker.send("POST", f"/review/{_sha(attacker)}", body)]


def _static(attacker: Attacker) -> list[int]:
    return [attacker.send("GET", f"/static/{attacker.choose(*_STATIC)}")]


def _queries(attacker: Attacker) -> list[int]:
    path = attacker.choose(
        f"/review?done={'x' * 5000}", f"/review/{_sha(attacker)}?done=%ff", "/review?done=%00&done=1"
    )
    more = attacker.choose(
        path, f"/pictures/{_sha(attacker)}", f"/evidence/{_sha(attacker)}/{'9' * 5000}", "/served?x=%ff"
    )
    return [attacker.send("GET", more)]


PAGE: dict[str, Kind] = {
    "forms of another site": Kind(_another_site),
    "names of other hosts": Kind(_hosts, may=REFUSED | {"timeout"}),
    "names of files": Kind(_file_names, may=EITHER),
    "decisions with odd numbers": Kind(_decisions),
    "stale forms": Kind(_stale, cost=10, may=EITHER),
    "huge forms": Kind(_huge_forms, cost=4),
    "paths of files of the page": Kind(_static),
    "odd queries": Kind(_queries, may=EITHER),
}


def _wrong_key(attacker: Attacker) -> list[int]:
    guess = attacker.choose(*_KEYS, f"Bearer {attacker.chance.randbytes(32).hex()}")
    return [attacker.send("POST", attacker.path, attacker.image(), authorization=guess)]


def _guessed_key(attacker: Attacker) -> list[int]:
    key = attacker.known.key
    near = attacker.choose(
        key[:-1], key + "0", key.upper(), key[::-1], f"{key},{key}", hashlib.sha256(key.encode()).hexdigest()
    )
    header = attacker.choose("authorization", "x_api_key")
    value = near if header == "x_api_key" else f"Bearer {near}"
    return [attacker.send("POST", attacker.path, attacker.image(), **({"authorization": "x"} | {header: value}))]


KEYS: dict[str, Kind] = {"wrong keys": Kind(_wrong_key), "guessed keys": Kind(_guessed_key)}
