"""A private Python environment for the Triton inside the `nvidia-pytriton` wheel, made once in the user's cache.

Triton's Python stub can't read arrays of NumPy 2, and NumPy 1.26 ends at Python 3.12. So that users may have any
Python and NumPy, Triton's Python models run in an environment of their own:

    CACHE/plurum/server-KEY/    a virtual environment, and `environment.json`, written last

KEY depends on the wanted versions, so that another version of ONNX Runtime makes another environment. `CACHE` is
`XDG_CACHE_HOME`, or `~/.cache`; without a home it is a folder of the user's in the temporary folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plurum.errors import OutputError, ServerError
from plurum.files import atomic_folder, cache_folder
from plurum.serving.installation.interpreters import Interpreter, find_interpreter, has_pip

__all__ = ["PACKAGES", "private_environment"]

_log = logging.getLogger(__name__)

_LOCK = Path(__file__).with_name("requirements.txt")
PACKAGES = dict(line.split("==") for line in _LOCK.read_text(encoding="utf-8").split("\n") if "==" in line)
# Exported models were compared with PyTorch in the user's versions of these.
_OF_THE_USER = {
    **{name: (name,) for name in ("pillow", "openvino", "pydicom", "python-gdcm")},
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
# Packages that are only wanted with one of the user's. The decoders of DICOM have other versions for NumPy 1.
_OPTIONAL = {
    "openvino": "openvino",
    **dict.fromkeys(
        ("pydicom", "python-gdcm", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"), "pydicom"
    ),
}
_WITHOUT_DEPENDENCIES = "nvidia-pytriton"
_RECORD = "environment.json"
_OTHERWISE = "Or install Plurum with a server of its own, in Python 3.10 to 3.12: pip install 'plurum[embedded]'"


def private_environment() -> Interpreter:
    """Return the interpreter of the private environment, which is made first if it does not exist or is incomplete.

    Raises:
        ServerError: no fitting Python was found, or packages can't be installed.
    """
    wanted = _wanted()
    folder = _cache() / f"server-{_key(wanted)}"
    interpreter = _read(folder)
    if interpreter is None:
        with _locked():
            # Another process may have made it meanwhile.
            interpreter = _read(folder) or _make(folder, wanted)
    return interpreter


def _wanted() -> dict[str, str]:
    """Return the wanted version of each package: the user's, else the one of our list."""
    wanted = {}
    for package, version in PACKAGES.items():
        own = next(filter(None, map(_installed, _OF_THE_USER.get(package, ()))), None)
        if package not in _OPTIONAL or _installed(_OPTIONAL[package]):
            wanted[package] = own or version
    return wanted


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _key(wanted: dict[str, str]) -> str:
    choice = [wanted, os.environ.get("PLURUM_SERVE_PYTHON", "")]
    return hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:12]


def _cache() -> Path:
    """Return Plurum's folder in the user's cache, or in the temporary folder for a user without a home."""
    places = [cache_folder()]
    if not os.environ.get("XDG_CACHE_HOME"):
        places.append(Path(tempfile.gettempdir(), f"plurum-{os.geteuid()}"))
    for cache in places:
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            break
        except OSError as error:
            reason = error.strerror
    else:
        raise ServerError(
            f"XDG_CACHE_HOME: expected a folder to keep Triton's environment in, got {cache.parent}: {reason}. "
            "Set it to a folder that you can write to."
        )
    status = cache.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
        raise ServerError(f"{cache}: expected a folder that only its owner, you, can write to. Run: chmod go-w {cache}")
    return cache


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time make an environment."""
    lock = os.open(_cache() / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("waiting for another process that makes Triton's environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read(folder: Path) -> Interpreter | None:
    """Return the interpreter of the environment `folder`; None if it is missing, incomplete or was changed."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        interpreter = Interpreter(**record["interpreter"])
        if not Path(interpreter.library).is_file() or not os.access(interpreter.executable, os.X_OK):
            return None
        if record["size"] != _size(folder):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    _tell_differences(record["wanted"], record["installed"])
    return interpreter


def _size(folder: Path) -> list[int]:
    """Return the number of files in an environment and their total size in bytes, without compiled Python."""
    sizes = [
        entry.stat(follow_symlinks=False).st_size
        for place, _, names in os.walk(folder)
        if not place.endswith("__pycache__")
        for entry in map(Path(place).joinpath, names)
        if entry.name != _RECORD
    ]
    return [len(sizes), sum(sizes)]


def _tell_differences(wanted: dict[str, str], installed: dict[str, str]) -> None:
    for package, version in wanted.items():
        if installed[package] != version:
            _log.warning("Triton runs %s %s; here it is %s", package, installed[package], version)


def _make(folder: Path, wanted: dict[str, str]) -> Interpreter:
    for left in folder.parent.glob(".server-*"):
        # Of a process that was killed.
        shutil.rmtree(left, ignore_errors=True)
    try:
        base = find_interpreter(folder.parent)
    except LookupError as error:
        raise ServerError(str(error)) from error
    _log.warning("making an environment for Triton in %s with Python %s; this happens once", folder, base.version)
    try:
        with atomic_folder(folder, private=True) as hidden:
            _run([base.base, "-I", "-m", "venv", "--without-pip", str(hidden)], "the virtual environment can't be made")
            installed = _install(hidden / "bin" / "python", wanted)
            python = folder / "bin" / "python"
            interpreter = Interpreter(str(python), base.base, base.version, base.library)
            record = {"interpreter": vars(interpreter), "wanted": wanted, "installed": installed}
            (hidden / _RECORD).write_text(json.dumps(record | {"size": _size(hidden)}), encoding="utf-8")
    except OutputError as error:
        raise ServerError(str(error)) from error
    _log.warning("the environment for Triton is complete")
    _tell_differences(wanted, installed)
    return interpreter


def _install(python: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Install the packages, in our list's versions where the wanted ones don't exist, and return the versions.

    Raises:
        ServerError: packages can't be installed.
    """
    installed = dict(wanted)
    triton = f"{_WITHOUT_DEPENDENCIES}=={installed[_WITHOUT_DEPENDENCIES]}"
    # Its own dependencies are for what Plurum does not use.
    _run([*_installer(python), "--no-deps", triton], f"{triton} can't be installed")
    others = [package for package in wanted if package != _WITHOUT_DEPENDENCIES]
    try:
        _run([*_installer(python), *(f"{one}=={wanted[one]}" for one in others)], "packages can't be installed")
    except ServerError as error:
        ours = {package: PACKAGES[package] for package in others}
        if all(wanted[package] == ours[package] for package in others):
            raise
        _log.debug("%s", error)
        _run([*_installer(python), *(f"{one}=={ours[one]}" for one in others)], "packages can't be installed")
        installed |= ours
    return installed


def _installer(python: Path) -> list[str]:
    """Return the command that installs packages for another interpreter."""
    if has_pip():
        return [
            sys.executable, "-m", "pip", "--python", str(python), "install",
            "--disable-pip-version-check", "--no-input", "--only-binary=:all:", "--retries=2",
        ]  # fmt: skip
    if found := shutil.which("uv"):
        return [found, "pip", "install", "--python", str(python), "--only-binary=:all:"]
    raise ServerError(
        f"pip: expected in {sys.executable} or uv on PATH, to make Triton's environment, got neither. {_OTHERWISE}"
    )


def _run(command: list[str], failure: str) -> None:
    """Run `command`, with its progress on the terminal if there is one."""
    watched = sys.stderr.isatty()
    outcome = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if watched else subprocess.PIPE,
        stderr=None if watched else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if outcome.returncode != 0:
        lines = [line for line in (outcome.stdout or "").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["see above"]
        raise ServerError(f"Triton's environment: {failure} ({errors[-1].strip()}). {_OTHERWISE}")
