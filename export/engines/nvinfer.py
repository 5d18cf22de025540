"""Version of the TensorRT library that Triton loads on this machine; a plan loads only with the version that built it.

    python -c "from plurum.export.engines.nvinfer import main; main()"

prints the version as a pip pattern, such as `10.13.2.*`. Python's `tensorrt` package, which builds plans, has its own
library and may have another version. Pin it to Triton's.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from plurum.errors import RepositoryError

__all__ = ["check_tensorrt", "is_same_tensorrt", "loaded_version", "main", "version_from_number"]

# The backend's binary names the library that Triton loads.
_BACKEND = Path("/opt/tritonserver/backends/tensorrt/libtriton_tensorrt.so")
_NAMES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")


def version_from_number(number: int) -> str:
    """Return the version of a `getInferLibVersion` number: 101302 is 10.13.2; before TensorRT 10, 8601 was 8.6.1."""
    thousands = 10_000 if number >= 100_000 else 1_000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def loaded_version() -> str | None:
    """Return the version of the libnvinfer that the loader finds, as for Triton, or None if there is none."""
    for name in _library_names():
        try:
            library = ctypes.CDLL(name)
            get_version = library.getInferLibVersion
        except (OSError, AttributeError):
            continue
        get_version.restype = ctypes.c_int32
        return version_from_number(int(get_version()))
    return None


def is_same_tensorrt(one: str, other: str) -> bool:
    """Return True if plans of one version load with the other: major, minor and patch are equal."""
    return one.split(".")[:3] == other.split(".")[:3]


def check_tensorrt(builder: str) -> None:
    """Refuse to build if the builder's version differs from that of Triton's TensorRT on this machine.

    Args:
        builder: Version of Python's `tensorrt`.

    Raises:
        RepositoryError: the versions differ.
    """
    here = loaded_version()
    if here is not None and not is_same_tensorrt(here, builder):
        raise RepositoryError(
            f"tensorrt: expected {here}, the version that Triton loads plans of, got {builder}; "
            f"run: pip install 'tensorrt=={here}.*'"
        )


def main() -> None:
    """Print the version as a pattern for pip.

    Raises:
        RepositoryError: this machine has no libnvinfer.
    """
    here = loaded_version()
    if here is None:
        raise RepositoryError("no libnvinfer found on this machine; run this inside the container that serves")
    sys.stdout.write(f"{here}.*\n")


def _library_names() -> tuple[str, ...]:
    try:
        needed = re.findall(rb"libnvinfer\.so\.\d+", _BACKEND.read_bytes())
    except OSError:
        return _NAMES
    return (*dict.fromkeys(name.decode() for name in needed), *_NAMES)
