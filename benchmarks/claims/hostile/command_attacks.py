"""Attacks on the command line: files, names and values that a user got from somebody else.

The outcome of a command is a status: 200 if it succeeded, 400 if it named the fault and ended with an exit code of its
own, 500 for a traceback or a signal, a timeout if it had to be ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from plurum.benchmarks.claims.hostile import images
from plurum.benchmarks.claims.hostile.attack import EITHER, Attacker, Kind, Make
from plurum.benchmarks.claims.hostile.wires import TIMEOUT

__all__ = ["COMMANDS", "plurum"]

_FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")
_LONGEST_S, _MOST_BYTES = 60.0, 3 << 30
_DEVICES = (
    "/dev/zero", "/dev/urandom", "/dev/full", "/proc/self/mem", "/proc/kmsg", "/proc/kcore", "/dev/stdin", "/",
    "/proc/self/fd/1",
)  # fmt: skip
_SPECIAL = ("a" * 200, "a b'\"c", "ä\n", "-rf", "\udcff", "%s%n", "~", "$(id)", "..")
_OPTIONS = (
    ("predict", "x.png", "--timeout", "nan"), ("predict", "x.png", "--timeout", "-1"),
    ("predict", "x.png", "--timeout", "1e999"),
    ("predict", "x.png", "--url", "unix:/x"), ("predict", "x.png", "--url", "127.0.0.1:999999"),
    ("predict", "x.png", "--url", "\udcff"),
    ("predict", "x.png", "--url", "http://[::1"), ("gateway", "--triton", "x"), ("gateway", "--deadline-s", "nan"),
    ("gateway", "--max-body-mib", "0"), ("gateway", "--host", "a" * 300),
    ("ui", "--host", "é" * 99, "--store", "store"),
    ("ui", "--port", "99999"), ("serve", "x", "--host", "256.1.1.1"), ("serve", "--releases", "/dev/null"), ("serve",),
    ("data", "digits", "--tile-size", "-5"), ("data", "x", "--max-tiles", str(1 << 70)),
    ("predict", "x", "--batch-size", "0"),
)  # fmt: skip


def plurum(*words: str, folder: Path, temporary: Path, stdin: bytes = b"") -> tuple[int, str]:
    """Run a command of Plurum in `folder`; return its outcome and what it wrote to standard output."""
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "plurum", *words]
    with (folder / "command.out").open("w+b") as out, (folder / "command.err").open("w+b") as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=err)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(stdin)
        outcome = _watched(process)
        err.seek(0)
        out.seek(0)
        if b"Traceback (most recent call last)" in err.read():
            outcome = 500
        return outcome, out.read().decode(errors="replace")


def _watched(process: subprocess.Popen[bytes]) -> int:
    """Wait for a command; end it when it takes too long or too much memory."""
    deadline = time.monotonic() + _LONGEST_S
    while (code := process.poll()) is None:
        try:
            held = psutil.Process(process.pid).memory_info().rss
        except psutil.Error:
            held = 0
        if time.monotonic() > deadline or held > _MOST_BYTES:
            process.kill()
            process.wait()
            return TIMEOUT
        time.sleep(0.05)
    return 200 if code == 0 else 500 if code < 0 else 400


def _run(attacker: Attacker, *words: str, stdin: bytes = b"") -> list[int]:
    folder, temporary = _folder(attacker), attacker.known.temporary
    return [plurum(*words, folder=folder, temporary=temporary, stdin=stdin)[0]]


def _folder(attacker: Attacker) -> Path:
    """Return a folder of this attacker's own."""
    folder = attacker.known.folder / f"command-{id(attacker)}"
    folder.mkdir(exist_ok=True)
    return folder


def _file(attacker: Attacker, name: str, data: bytes) -> str:
    path = _folder(attacker) / name
    path.write_bytes(data)
    return str(path)


def _fifo(attacker: Attacker) -> str:
    path = _folder(attacker) / "fifo.png"
    if not path.exists():
        os.mkfifo(path)
    return str(path)


def _read(attacker: Attacker, command: str, *words: str, stdin: bytes = b"") -> list[int]:
    """Run a command that reads images; `predict` sends them to the server."""
    server = ("--url", f"127.0.0.1:{attacker.known.places['grpc'].port}") if command == "predict" else ()
    return _run(attacker, command, *server, *words, stdin=stdin)


def _list(command: str, choose: Callable[[Attacker], str]) -> Make:
    """Return an attack by a manifest that names a path of `choose`."""

    def make(attacker: Attacker) -> list[int]:
        path = choose(attacker)
        manifest = f"path,label\n{path},a\n{path},b\n".encode("utf-8", "surrogateescape")
        return _read(attacker, command, _file(attacker, "manifest.csv", manifest))

    return make


def _choose_device(attacker: Attacker) -> str:
    return attacker.choose(*_DEVICES)


def _choose_file(attacker: Attacker) -> str:
    return attacker.choose(*_DEVICES, _fifo(attacker))


def _tables() -> Sequence[bytes]:
    return (
        b"path,label\n" + b"a" * 3_000_000 + b",b\n",
        b'path,label\n"' + b"x,y\n" * 300_000,
        b"path,label\n\0,\0\n",
        "path,label\nx,é\n".encode("utf-16"),
        b"\xff\xfe\xfd",
        b"path,label\n" * 200_000,
        b"path,path\nx,y\n",
        b"",
        b"path\n",
        b"path,label\n" + b"," * 1_000_000,
    )


def _table(attacker: Attacker) -> list[int]:
    manifest = _file(attacker, "table.csv", attacker.choose(*_tables()))
    return _read(attacker, attacker.choose("data", "predict"), manifest)


def _archives(attacker: Attacker) -> list[int]:
    path = _folder(attacker) / "images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_images.npy", "train_labels.npy", "val_images.npy"):
            archive.writestr(name, attacker.choose(*_arrays()))
    if attacker.chance.random() < 0.3:
        path.write_bytes(path.read_bytes()[: attacker.chance.randint(0, 200)])
    return _run(attacker, "data", str(path))


def _arrays() -> Sequence[bytes]:
    def array(header: str, data: bytes = b"") -> bytes:
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data

    return (
        array("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(_Evil())),
        array("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999, 3), }"),
        array("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8), }"),
        array("(" * 5000),
        array("{'descr': '<f8', 'fortran_order': False, 'shape': (4, 28, 28), }", bytes(4 * 28 * 28 * 8)),
        bytes(50 << 20),
        b"",
    )


class _Evil:
    """Would run a command where a pickle is believed."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("ran",)


def _checkpoints() -> Sequence[tuple[str, bytes]]:
    return (
        ("x.pt", b"text, and no checkpoint\n"),
        ("x.pt", b""),
        ("x.pt", b"PK\x03\x04" + bytes(99)),
        ("x.pt", pickle.dumps(_Evil())),
        ("x.pt", pickle.dumps([1, 2])),
        ("x.pth", b"\x80"),
        ("x.bin", bytes(1000)),
        ("x.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        ("x.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("x.safetensors", struct.pack("<Q", 5) + b"{{{{{"),
        ("x.safetensors", b""),
    )


def _checkpoint(attacker: Attacker) -> list[int]:
    path = _file(attacker, *attacker.choose(*_checkpoints()))
    return _run(attacker, "export", path, "--arch", "test_resnet", "--classes", "a,b", "--out", "repository")


def _broken_metadata(attacker: Attacker) -> Sequence[bytes]:
    good = json.loads((attacker.known.repository / "ensemble.json").read_text())
    key = attacker.choose(*sorted(good))
    odd: Any = attacker.choose(None, [], {}, "x", -1, 1e308, "\ud800", ["a"] * 9999, {"a": {}})
    return (
        json.dumps(good | {key: odd}).encode(),
        json.dumps(good | {"unknown": 1}).encode(),
        b"[" * 100_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        json.dumps(good).encode()[:-40],
        json.dumps(good).replace("0", "NaN", 1).encode(),
        b"",
        b"\xff\xfe",
        bytes(30 << 20),
    )


def _repository(attacker: Attacker) -> str:
    """Return the path of a folder that looks like a repository and has broken metadata."""
    folder = _folder(attacker) / "repository"
    for model in ("ensemble", "preprocess", "voter"):
        (folder / model / "1").mkdir(parents=True, exist_ok=True)
        (folder / model / "config.pbtxt").write_bytes(attacker.choose(b"", b"{" * 9999, b'name: "x"', bytes(999)))
    ensemble_file = folder / "ensemble.json"
    ensemble_file.unlink(missing_ok=True)
    if attacker.chance.random() < 0.1:
        os.mkfifo(ensemble_file)
    elif attacker.chance.random() < 0.1:
        ensemble_file.symlink_to("/dev/zero")
    else:
        ensemble_file.write_bytes(attacker.choose(*_broken_metadata(attacker)))
    return str(folder)


def _names(attacker: Attacker) -> list[int]:
    name = attacker.choose(*_SPECIAL)
    command = attacker.choose("predict", "data", "doctor", "fit", "evaluate")
    return _read(attacker, command, "--", name)


def _lists(attacker: Attacker) -> list[int]:
    lists = (b"\0" * 100_000, b"x\n" * 20_000, b"\xff\xfe", b"/dev/zero\n", b"a" * 5_000_000, b"", b"\n\n\n")
    return _read(attacker, "predict", "-", stdin=attacker.choose(*lists))


def _pictures(attacker: Attacker) -> list[int]:
    made: tuple[Sequence[bytes], ...] = (
        images.broken_jpegs(), images.broken_pngs(), images.broken_tiffs(), images.png_bombs(), images.polyglots(),
        images.other_formats(),
        [images.claimed_jpeg()], [images.endless_jpeg()], [images.huge_tile()], images.many_pages(),
    )  # fmt: skip
    path = _file(attacker, "image.png", attacker.choose(*attacker.choose(*made)))
    if attacker.chance.random() < 0.5:
        return _read(attacker, "predict", path)
    (_folder(attacker) / "classes" / "a").mkdir(parents=True, exist_ok=True)
    Path(path).replace(_folder(attacker) / "classes" / "a" / "image.png")
    return _run(attacker, "data", str(_folder(attacker) / "classes"))


def _secrets(attacker: Attacker) -> list[int]:
    odd = attacker.choose(
        *_DEVICES[:2], _fifo(attacker), _file(attacker, "odd.pem", b"-----BEGIN CERTIFICATE-----\nx\n"), "/"
    )
    ports = ("--port", "0", "--metrics-port", "0")
    options = attacker.choose(("--keys", odd), ("--tls-cert", odd, "--tls-key", odd))
    return _run(attacker, "gateway", *ports, *options)


def _store(attacker: Attacker) -> list[int]:
    folder = _folder(attacker) / "store"
    folder.mkdir(exist_ok=True)
    (folder / "reviews.sqlite").unlink(missing_ok=True)
    if attacker.chance.random() < 0.3:
        (folder / "reviews.sqlite").symlink_to(attacker.choose("/dev/zero", "/proc/self/mem", "/"))
    else:
        (folder / "reviews.sqlite").write_bytes(
            attacker.choose(b"x" * 5000, b"SQLite format 3\0" + bytes(9999), bytes(4096))
        )
    return _run(attacker, "ui", "--store", str(folder), "--export", "out.csv")


_ODD = EITHER | {"2xx"}

COMMANDS: dict[str, Kind] = {
    "predict: a manifest that names devices": Kind(_list("predict", _choose_device), cost=400, may=_ODD),
    "predict: a manifest that names a FIFO": Kind(_list("predict", _fifo), cost=400),
    "predict: devices and FIFOs": Kind(lambda one: _read(one, "predict", _choose_file(one)), cost=200, may=_ODD),
    "predict: lists on standard input": Kind(_lists, cost=200, may=_ODD),
    "data: a manifest that names devices": Kind(_list("data", _choose_device), cost=400),
    "data: a manifest that names a FIFO": Kind(_list("data", _fifo), cost=400),
    "data: devices and FIFOs": Kind(lambda one: _read(one, "data", _choose_file(one)), cost=400),
    "data, predict: broken tables": Kind(_table, cost=200, may=_ODD),
    "data: archives of arrays": Kind(_archives, cost=200),
    "data, predict: hostile images": Kind(_pictures, cost=100, may=_ODD),
    "export: files that are no checkpoint": Kind(_checkpoint, cost=200),
    "doctor: broken metadata": Kind(lambda one: _run(one, "doctor", _repository(one)), cost=200),
    "serve: broken metadata": Kind(lambda one: _run(one, "serve", _repository(one), *_FREE), cost=200),
    "evaluate, fit, …: odd names": Kind(_names, cost=200, may=_ODD),
    "gateway: keys and certificates": Kind(_secrets, cost=200),
    "ui: a store that is none": Kind(_store, cost=200),
    "odd values of options": Kind(lambda one: _run(one, *one.chance.choice(_OPTIONS)), cost=100),
}  # fmt: skip
