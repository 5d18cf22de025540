"""Find a Python that can run Triton's Python models: version 3.10 to 3.12, with a shared library.

    python interpreters.py

prints the description of the interpreter that runs it, as JSON. Therefore the file imports nothing of Plurum.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["VERSIONS", "Interpreter", "describe_this", "find_interpreters"]

# NumPy 1.26, which Triton's stubs need, has wheels up to Python 3.12.
VERSIONS = ("3.12", "3.11", "3.10")
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
        return self.version in VERSIONS and bool(self.library)


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


def find_interpreters() -> Iterator[Interpreter]:
    """Yield the fitting interpreters of this machine: this one, those on PATH, those in the system's folders."""
    seen: set[str] = set()
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin"])
    names = [sys.executable, *(shutil.which(f"python{version}", path=folders) for version in VERSIONS)]
    for name in names:
        interpreter = describe(Path(name)) if name else None
        if interpreter is not None and interpreter.fits and interpreter.base not in seen:
            seen.add(interpreter.base)
            yield interpreter


def describe(executable: Path) -> Interpreter | None:
    """Return the description of another interpreter; None if it can't be run."""
    try:
        outcome = subprocess.run(
            [executable, "-I", "-S", __file__], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
        return Interpreter(**json.loads(outcome.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(describe_this())))
