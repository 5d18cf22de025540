"""The TensorRT that Triton loads here, asked of the library itself: a plan loads with no other version.

    python -c "from plurum.export.engines.nvinfer import main; main()"

prints what pip takes for it, such as `10.13.2.*`. Python's `tensorrt` brings a library of its own and may be of another
version; it is the one that builds, and has to be pinned to Triton's.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from plurum.errors import RepositoryError

__all__ = ["check_tensorrt", "loaded_version", "main", "same_tensorrt", "version_from_number"]

# Which of several libraries Triton takes is written in its backend.
_BACKEND = Path("/opt/tritonserver/backends/tensorrt/libtriton_tensorrt.so")
_NAMES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")


def version_from_number(number: int) -> str:
    """Return the version behind `getInferLibVersion`: 101302 is 10.13.2; before TensorRT 10, 8601 was 8.6.1."""
    thousands = 10_000 if number >= 100_000 else 1_000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def loaded_version() -> str | None:
    """Return the version of the libnvinfer that the loader finds, as it does for Triton; None where there is none."""
    for name in _names():
        try:
            library = ctypes.CDLL(name)
            ask = library.getInferLibVersion
        except (OSError, AttributeError):
            continue
        ask.restype = ctypes.c_int32
        return version_from_number(int(ask()))
    return None


def same_tensorrt(one: str, other: str) -> bool:
    """Whether plans of the one version load with the other: major, minor and patch are the same."""
    return one.split(".")[:3] == other.split(".")[:3]


def check_tensorrt(builder: str) -> None:
    """Refuse to build with another TensorRT than Triton's, where that is here.

    Args:
        builder: Version of Python's `tensorrt`.

    Raises:
        RepositoryError: they differ.
    """
    here = loaded_version()
    if here is not None and not same_tensorrt(here, builder):
        raise RepositoryError(
            f"TensorRT {builder} would build, and Triton loads {here}, which loads no plan of another version; "
            f"run: pip install 'tensorrt=={here}.*'"
        )


def main() -> None:
    """Print the version as a pattern for pip.

    Raises:
        RepositoryError: there is no libnvinfer here.
    """
    here = loaded_version()
    if here is None:
        raise RepositoryError("the loader finds no libnvinfer here; run this inside the container that serves")
    sys.stdout.write(f"{here}.*\n")


def _names() -> tuple[str, ...]:
    try:
        needed = re.findall(rb"libnvinfer\.so\.\d+", _BACKEND.read_bytes())
    except OSError:
        return _NAMES
    return (*dict.fromkeys(name.decode() for name in needed), *_NAMES)
