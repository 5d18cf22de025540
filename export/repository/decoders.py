"""Packages that Triton's Python needs to decode images, where Triton is not the one that Plurum installs."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from plurum.spec import ImageSpec

__all__ = ["decoder_command", "missing_decoders"]

# By the module that is imported.
_PACKAGES = {"PIL": "pillow", "pydicom": "pydicom[pixeldata]>=3"}
_PROGRAM = "import importlib.util, sys; print(*(one for one in sys.argv[1:] if importlib.util.find_spec(one) is None))"
_SECONDS = 20


def decoder_command(image: ImageSpec) -> str:
    """Return the command that adds all packages for images of this spec to the Python of Triton's models.

    Windows apply to DICOM images, so that a spec with a window needs pydicom, too.
    """
    return _command(_modules(image))


def missing_decoders(image: ImageSpec) -> str | None:
    """Return the command that adds what Triton's Python lacks here; empty if nothing, None if no Triton is on PATH.

    Python models run in the environment of the first `python3` on PATH.
    """
    if shutil.which("tritonserver") is None:
        return None
    python = shutil.which("python3")
    if python is None:
        return decoder_command(image)
    done = subprocess.run(
        [python, "-c", _PROGRAM, *_modules(image)], capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    lacking = _modules(image) if done.returncode else done.stdout.split()
    return _command(lacking) if lacking else ""


def _modules(image: ImageSpec) -> list[str]:
    return ["PIL"] if image.window is None else ["PIL", "pydicom"]


def _command(modules: list[str]) -> str:
    return f"pip install {' '.join(shlex.quote(_PACKAGES[one]) for one in modules)}"
