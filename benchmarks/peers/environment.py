"""A virtual environment per peer, in the user's cache: the packages of the peer, and behind them those of Plurum.

So PyTorch, ONNX Runtime, NumPy and Pillow are the same for all, and are not installed twice.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from plurum.errors import ServerError
from plurum.files import atomic_folder, cache_folder

__all__ = ["installed_versions", "python_with"]

_INSTALL_S = 600


def python_with(requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of the environment with these packages; create it atomically if it does not exist.

    Raises:
        OutputError: The cache is not writable.
        ServerError: pip could not install the packages.
    """
    packages = sysconfig.get_path("purelib")
    digest = hashlib.sha256("\n".join([sys.version, packages, *requirements]).encode()).hexdigest()[:12]
    folder = cache_folder() / "peers" / digest
    if not (folder / "bin" / "python").exists():
        with atomic_folder(folder) as hidden:
            _make(hidden, packages, requirements)
    return folder / "bin" / "python"


def installed_versions(python: Path, requirements: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each required package in the environment of an interpreter."""
    names = [requirement.split(">=")[0].split("[")[0] for requirement in requirements]
    code = "import sys\nfrom importlib.metadata import version\nprint(*map(version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


def _make(folder: Path, packages: str, requirements: tuple[str, ...]) -> None:
    venv.create(folder, symlinks=True)
    (own,) = (folder / "lib").glob("python*/site-packages")
    # Follows the links of an editable installation, which a plain path would leave out.
    (own / "plurum.pth").write_text(f"import site; site.addsitedir({packages!r})\n", encoding="utf-8")
    if not requirements:
        return
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    # Only from wheels: a framework that was compiled here is not the one that others measure.
    command = [*pip, "install", "--quiet", "--only-binary=:all:", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"pip did not install {' '.join(requirements)} within {_INSTALL_S} s") from error
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no message")
        raise ServerError(f"pip could not install {' '.join(requirements)}: {reason.removeprefix('ERROR: ')}")
