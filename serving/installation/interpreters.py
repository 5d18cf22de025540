"""Find a Python that can run Triton's Python models: version 3.10 to 3.12, with a shared library.

    python interpreters.py          prints the description of the interpreter that runs it, as JSON
    python interpreters.py CACHE    finds one, downloads it to CACHE if need be, and prints its path

The file imports nothing of Plurum, so that it runs in any interpreter and before Plurum is installed.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Interpreter", "describe", "describe_this", "find_interpreter", "has_pip"]

# NumPy 1.26, which Triton's stubs need, has wheels up to Python 3.12.
_VERSIONS = ("3.12", "3.11", "3.10")
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter.

    Attributes:
        executable: Path of the program; in a virtual environment, that environment's.
        base: Path of the program that a virtual environment was made from, else of the program itself.
        version: Version such as `3.11`.
        library: Path of its shared library (libpython); empty if it has none.
    """

    executable: str
    base: str
    version: str
    library: str

    @property
    def fits(self) -> bool:
        """True if Triton's Python models can run in it."""
        return self.version in _VERSIONS and bool(self.library)


def describe_this() -> Interpreter:
    """Return the description of the interpreter that runs this."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    places = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    # A Python without a shared library names its static one (.a) here.
    found = (Path(place, name) for place in places if ".so" in name)
    return Interpreter(
        executable=sys.executable,
        base=getattr(sys, "_base_executable", "") or sys.executable,
        version=sysconfig.get_python_version(),
        library=next((str(path) for path in found if path.is_file()), ""),
    )


def find_interpreter(cache: Path) -> Interpreter:
    """Return a fitting interpreter.

    The search order is: `PLURUM_SERVE_PYTHON`, this interpreter, those on PATH and in the system's folders, and uv,
    which may download one.

    Args:
        cache: Folder for the download.

    Raises:
        LookupError: there is none; the message is for the user.
    """
    if chosen := os.environ.get("PLURUM_SERVE_PYTHON"):
        found = describe(Path(shutil.which(chosen) or chosen))
        if found is not None and found.fits:
            return found
        got = "no Python" if found is None else f"Python {found.version}{'' if found.library else ' without one'}"
        raise LookupError(
            f"PLURUM_SERVE_PYTHON: expected Python 3.10 to 3.12 with a shared library (libpython), got {chosen}, {got}."
        )
    found = next(_on_this_machine(), None) or _from_uv(cache)
    if found is None:
        raise LookupError(
            "Triton's Python models need Python 3.10, 3.11 or 3.12 with its shared library, and none was found. "
            "Install one (Debian, Ubuntu: apt-get install libpython3.11 or libpython3.12; or: uv python install 3.12), "
            "or name one in PLURUM_SERVE_PYTHON."
        )
    return found


def _on_this_machine() -> Iterator[Interpreter]:
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin"])
    names = [sys.executable, *(shutil.which(f"python{version}", path=folders) for version in _VERSIONS)]
    for name in filter(None, names):
        found = describe(Path(name))
        if found is not None and found.fits:
            yield found


def _from_uv(cache: Path) -> Interpreter | None:
    """Return an interpreter that uv has or downloads; None without uv or the download."""
    with tempfile.TemporaryDirectory(prefix="plurum_uv_") as place:
        uv = _find_uv(place)
        if uv is None:
            return None
        # In Plurum's cache, so that it appears nowhere else.
        environment = os.environ | {"UV_PYTHON_INSTALL_DIR": str(cache / "python")}
        for arguments in (["install", "--no-bin", _VERSIONS[0]], ["find", "--no-project", _VERSIONS[0]]):
            outcome = subprocess.run(
                [*uv, "python", *arguments], env=environment, capture_output=True, text=True, check=False
            )
        found = describe(Path(outcome.stdout.strip())) if outcome.returncode == 0 else None
        return found if found is not None and found.fits else None


def _find_uv(place: str) -> list[str] | None:
    """Return the command of uv, which pip installs in the folder `place` if it is not there."""
    if found := shutil.which("uv"):
        return [found]
    if not has_pip():
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", place, "uv"]
    outcome = subprocess.run(command, capture_output=True, check=False)
    return [f"{place}/bin/uv"] if outcome.returncode == 0 else None


def has_pip() -> bool:
    """Say whether this interpreter has pip.

    `importlib.util.find_spec` would ask setuptools' hook too, which then gives this whole process the standard
    library's distutils: deprecated, and torch.compile imports it.
    """
    return importlib.machinery.PathFinder.find_spec("pip") is not None


def describe(executable: Path) -> Interpreter | None:
    """Return the description of another interpreter; None if it can't be run."""
    try:
        outcome = subprocess.run(
            [executable, "-I", "-S", __file__], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
        return Interpreter(**json.loads(outcome.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def _main() -> None:
    if len(sys.argv) == 1:
        sys.stdout.write(json.dumps(asdict(describe_this())))
        return
    try:
        sys.stdout.write(f"{find_interpreter(Path(sys.argv[1])).base}\n")
    except LookupError as error:
        sys.exit(f"plurum: {error}")


if __name__ == "__main__":
    _main()
