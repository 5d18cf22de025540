"""Find a Triton server, and prepare the files that the server from the wheel needs.

A `tritonserver` on PATH (NVIDIA's container, a system installation) brings its own backends and Python. Otherwise
Plurum starts the binary inside the `nvidia-pytriton` wheel, which has only the Python backend. Each start then gets a
private backend directory, in which Plurum's Python-based backend stands in for the missing ONNX Runtime backend.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import ServerError, needs_extra
from plurum.telemetry import forbid_telemetry

__all__ = ["Layout", "TritonInstallation", "find_triton", "lay_out"]

_BACKENDS = Path(__file__).resolve().parents[1] / "backends"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonInstallation:
    """A Triton server that can be started.

    Attributes:
        binary: The `tritonserver` executable.
        wheel: The wheel's `tritonserver` folder; None for an installation with its own backends.
    """

    binary: Path
    wheel: Path | None = None

    @property
    def uses_gpu(self) -> bool:
        """True if this server places models on GPUs; the server from the wheel can't."""
        return self.wheel is None and any(Path("/dev").glob("nvidia[0-9]*"))


@dataclass(frozen=True)
class Layout:
    """Extra arguments and environment to start a server with.

    Attributes:
        arguments: Additional command-line arguments.
        environment: The complete environment of the process.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]


def find_triton() -> TritonInstallation:
    """Return the `tritonserver` on PATH, else the one inside the `nvidia-pytriton` wheel.

    Raises:
        ServerError: there is neither.
    """
    if found := shutil.which("tritonserver"):
        return TritonInstallation(Path(found))
    # Look the package up without importing it: the import starts background work.
    spec = importlib.util.find_spec("pytriton")
    for place in (spec.submodule_search_locations or []) if spec else []:
        wheel = Path(place) / "tritonserver"
        if (wheel / "bin" / "tritonserver").is_file():
            return TritonInstallation(wheel / "bin" / "tritonserver", wheel)
    raise ServerError(
        "no Triton server found: tritonserver is not on PATH, and the package nvidia-pytriton is not installed. "
        "Run: pip install 'plurum[serving]'"
    )


def lay_out(triton: TritonInstallation, folder: Path) -> Layout:
    """Write the files that `triton` needs to the empty `folder`, and return the arguments and environment to start it.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ServerError: this Python can't run Triton's Python backend.
    """
    if triton.wheel is None:
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        forbid_telemetry(environment)
        return Layout((), environment)
    with needs_extra("serving", "onnxruntime"):
        _check_numpy()
    stub = triton.wheel / "python_backend_stubs" / sysconfig.get_python_version() / _STUB
    if not stub.is_file():
        versions = [path.parent.name for path in stub.parent.parent.glob(f"*/{_STUB}")]
        known = ", ".join(sorted(versions, key=lambda version: int(version.partition(".")[2])))
        raise ServerError(
            f"nvidia-pytriton: expected Python {known}, got {sysconfig.get_python_version()}. "
            "Use a supported Python version."
        )
    backends, libraries = folder / "backends", folder / "lib"
    _write_backends(triton.wheel, stub, backends)
    _link_libpython(libraries)
    environment = _environment(libraries)
    _check_stub(stub, environment)
    return Layout((f"--backend-directory={backends}",), environment)


def _check_numpy() -> None:
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy: expected a version below 2, got {version}, with which this Triton's Python backend returns empty "
            "tensors. Run: pip install 'numpy>=1.26,<2'"
        )


def _write_backends(wheel: Path, stub: Path, backends: Path) -> None:
    source, python = wheel / "backends" / "python", backends / "python"
    python.mkdir(parents=True)
    # Copy the library: Triton refuses a Python-based backend whose library is a symbolic link ("escapes").
    shutil.copy2(source / "libtriton_python.so", python)
    (python / "triton_python_backend_utils.py").symlink_to(source / "triton_python_backend_utils.py")
    (python / _STUB).symlink_to(stub)
    (backends / "onnxruntime").mkdir()
    for file in (_BACKENDS / "onnxruntime" / "model.py", _BACKENDS / "graph_model.py"):
        shutil.copy2(file, backends / "onnxruntime")


def _link_libpython(libraries: Path) -> None:
    """Link this Python's shared library into a separate folder, so that LD_LIBRARY_PATH adds nothing else."""
    libraries.mkdir()
    name = sysconfig.get_config_var("INSTSONAME") or ""
    places = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    for place in places:
        # A Python without a shared library names its static one (.a) here.
        if ".so" in name and (found := Path(place, name)).is_file():
            (libraries / name).symlink_to(found)
            return


def _environment(libraries: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
    # The stub uses the environment of the first python3 on PATH.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # These variables would make the stub use another environment.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    # Bytecode would be written into the repository, which must stay unchanged.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # ONNX Runtime does the models' arithmetic, so BLAS in each stub needs only one thread.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    forbid_telemetry(environment)
    return environment


def _check_stub(stub: Path, environment: dict[str, str]) -> None:
    """Run the stub without arguments to check its libraries; without them Triton would hang and never become ready."""
    try:
        outcome = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False, timeout=30)
    except PermissionError as error:
        # Only the user who installed the wheel may execute the stub.
        raise ServerError(
            f"{stub}: expected a program that this user may run. As the user who installed nvidia-pytriton, run: "
            f"chmod a+rx {stub}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"Triton's Python stub {stub} can't be run: {error}") from error
    if outcome.returncode != 127:
        return
    reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1].rpartition(": error while ")[2]
    version = sysconfig.get_python_version()
    raise ServerError(
        f"Triton's Python backend can't start with this Python ({sys.executable}): {reason}. Install its shared "
        f"library (Debian, Ubuntu: apt-get install libpython{version}) or use a Python that has one (uv, conda)."
    )
