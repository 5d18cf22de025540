"""Finding a Triton server, and laying out what the one from a wheel needs.

A `tritonserver` on PATH (NVIDIA's container, a system's installation) brings its own backends and Python. Otherwise
the binary inside the `nvidia-pytriton` wheel serves: it has only the Python backend, and for every start we lay out
a private backend directory in which our Python-based one answers for the ONNX Runtime that it lacks.
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

__all__ = ["Layout", "Triton", "find_triton", "lay_out"]

_ONNXRUNTIME = Path(__file__).resolve().parents[1] / "backends" / "onnxruntime"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Triton:
    """A server that can be started.

    Attributes:
        binary: What to run.
        wheel: The wheel's `tritonserver` folder; None for an installation that needs nothing of ours.
    """

    binary: Path
    wheel: Path | None = None

    @property
    def uses_gpu(self) -> bool:
        """Whether it places models on GPUs: the one from the wheel can't."""
        return self.wheel is None and any(Path("/dev").glob("nvidia[0-9]*"))


@dataclass(frozen=True)
class Layout:
    """What a server is started with.

    Attributes:
        arguments: For its command line.
        environment: All of it.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]


def find_triton() -> Triton:
    """Return the `tritonserver` on PATH, else the one inside the `nvidia-pytriton` wheel.

    Raises:
        ServerError: there is neither.
    """
    if found := shutil.which("tritonserver"):
        return Triton(Path(found))
    # Only looked up: importing pytriton starts things that we don't need.
    spec = importlib.util.find_spec("pytriton")
    for place in (spec.submodule_search_locations or []) if spec else []:
        wheel = Path(place) / "tritonserver"
        if (wheel / "bin" / "tritonserver").is_file():
            return Triton(wheel / "bin" / "tritonserver", wheel)
    raise ServerError(
        "no Triton server here: neither tritonserver on PATH nor the package nvidia-pytriton; "
        "run: pip install 'plurum[serving]'"
    )


def lay_out(triton: Triton, folder: Path) -> Layout:
    """Return what to start `triton` with, after writing to the empty `folder` what it needs.

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
        raise ServerError(f"nvidia-pytriton serves Python {known}; this is {sysconfig.get_python_version()}")
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
            f"numpy is {version}, and this Triton's Python backend answers empty tensors with numpy 2; "
            "run: pip install 'numpy>=1.26,<2'"
        )


def _write_backends(wheel: Path, stub: Path, backends: Path) -> None:
    source, python = wheel / "backends" / "python", backends / "python"
    python.mkdir(parents=True)
    # A copy: Triton refuses Python-based backends whose library is reached through a link ("escapes").
    shutil.copy2(source / "libtriton_python.so", python)
    (python / "triton_python_backend_utils.py").symlink_to(source / "triton_python_backend_utils.py")
    (python / _STUB).symlink_to(stub)
    (backends / _ONNXRUNTIME.name).mkdir()
    shutil.copy2(_ONNXRUNTIME / "model.py", backends / _ONNXRUNTIME.name)


def _link_libpython(libraries: Path) -> None:
    """Put this Python's shared library into a folder of its own: LD_LIBRARY_PATH must not pull in anything else."""
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
    # The stub takes the environment of the first python3 on PATH; nothing else tells it.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # These would have the stub run in another environment than this one.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    # Beside a model's file it would lie in the repository, which is not ours to write to.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # The models' arithmetic is in ONNX Runtime; each stub's BLAS needs no threads of its own.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    forbid_telemetry(environment)
    return environment


def _check_stub(stub: Path, environment: dict[str, str]) -> None:
    """Run the stub with no arguments: without its libraries the server would hang for ever, unready."""
    try:
        outcome = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False, timeout=30)
    except PermissionError as error:
        # The wheel gives it to the user who installs it alone.
        raise ServerError(
            f"{stub}: expected a program that this user may run. Whoever installed nvidia-pytriton can run: "
            f"chmod a+rx {stub}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"Triton's Python stub {stub} can't be run: {error}") from error
    if outcome.returncode != 127:
        return
    reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1].rpartition(": error while ")[2]
    version = sysconfig.get_python_version()
    raise ServerError(
        f"Triton's Python backend can't start with this Python ({sys.executable}): {reason}; install its shared "
        f"library (Debian, Ubuntu: apt-get install libpython{version}) or use a Python that has one (uv, conda)"
    )
