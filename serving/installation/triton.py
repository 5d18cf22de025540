"""Find a Triton server, and prepare the files that the server from the wheel needs.

A `tritonserver` on PATH (NVIDIA's container, a system installation) brings its own backends and Python. Otherwise
Plurum starts the binary inside the `nvidia-pytriton` wheel, which has only the Python backend. Each start then gets a
private backend directory, in which Plurum's Python-based backend stands in for the missing ONNX Runtime backend.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import ServerError
from plurum.onnx_graphs import stages
from plurum.onnx_graphs.telemetry import forbid_telemetry
from plurum.serving.installation.environment import private_environment
from plurum.serving.installation.interpreters import Interpreter, describe_this

__all__ = ["TritonInstallation", "find_triton", "lay_out"]

_log = logging.getLogger(__name__)

_BACKENDS = Path(__file__).resolve().parents[1] / "backends"
_STUB = "triton_python_backend_stub"
_BINARY = Path("bin", "tritonserver")


@dataclass(frozen=True)
class TritonInstallation:
    """A Triton server that can be started.

    Attributes:
        binary: The `tritonserver` executable.
        wheel: The wheel's `tritonserver` folder; None for an installation with its own backends.
        python: Interpreter that runs the Python models of the server from the wheel; else None.
    """

    binary: Path
    wheel: Path | None = None
    python: Interpreter | None = None

    @property
    def uses_gpu(self) -> bool:
        """True if this server places models on GPUs; the server from the wheel can't."""
        return self.wheel is None and any(Path("/dev").glob("nvidia[0-9]*"))


def find_triton() -> TritonInstallation:
    """Return the `tritonserver` on PATH, else the one of the wheel.

    The wheel of this Python environment is taken if Triton's Python models can run in it, which the extra `embedded`
    provides; otherwise that of the private environment, which is made if need be.

    Raises:
        ServerError: the private environment can't be made.
    """
    if found := shutil.which("tritonserver"):
        return TritonInstallation(Path(found))
    return _of_this_environment() or _of(private_environment())


def _of_this_environment() -> TritonInstallation | None:
    python = describe_this()
    # Look packages up without importing them: pytriton's import starts background work.
    spec = importlib.util.find_spec("pytriton")
    if not python.fits or spec is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    if int(importlib.metadata.version("numpy").split(".")[0]) >= 2:
        _log.info("numpy %s can't run Triton's Python models", importlib.metadata.version("numpy"))
        return None
    wheels = [Path(place) / "tritonserver" for place in spec.submodule_search_locations or []]
    return next((_from_wheel(wheel, python) for wheel in wheels if (wheel / _BINARY).is_file()), None)


def _of(python: Interpreter) -> TritonInstallation:
    packages = Path(python.executable).parents[1] / "lib" / f"python{python.version}" / "site-packages"
    return _from_wheel(packages / "pytriton" / "tritonserver", python)


def _from_wheel(wheel: Path, python: Interpreter) -> TritonInstallation:
    return TritonInstallation(wheel / _BINARY, wheel, python)


def lay_out(triton: TritonInstallation, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Write the files that `triton` needs to the empty `folder`; return its extra arguments and its environment.

    Raises:
        ServerError: Triton's Python models can't run in their interpreter.
    """
    if triton.wheel is None or triton.python is None:
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        forbid_telemetry(environment)
        return [], environment
    stub = triton.wheel / "python_backend_stubs" / triton.python.version / _STUB
    backends, libraries = folder / "backends", folder / "lib"
    _write_backends(triton.wheel, stub, backends)
    # In a separate folder, so that LD_LIBRARY_PATH adds nothing else.
    libraries.mkdir()
    library = Path(triton.python.library)
    (libraries / library.name).symlink_to(library)
    environment = _environment(Path(triton.python.executable).parent, libraries)
    _check_stub(stub, triton.python, environment)
    return [f"--backend-directory={backends}"], environment


def _write_backends(wheel: Path, stub: Path, backends: Path) -> None:
    source, python = wheel / "backends" / "python", backends / "python"
    python.mkdir(parents=True)
    # Copy the library: Triton refuses a Python-based backend whose library is a symbolic link ("escapes").
    shutil.copy2(source / "libtriton_python.so", python)
    (python / "triton_python_backend_utils.py").symlink_to(source / "triton_python_backend_utils.py")
    (python / _STUB).symlink_to(stub)
    (backends / "onnxruntime").mkdir()
    beside = (_BACKENDS / "graph_model.py", _BACKENDS / "cores.py", Path(stages.__file__))
    for file in (_BACKENDS / "onnxruntime" / "model.py", *beside):
        shutil.copy2(file, backends / "onnxruntime")


def _environment(programs: Path, libraries: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
    # The stub uses the environment of the first python3 on PATH.
    environment["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    # These variables would make the stub use another environment.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    # Bytecode would be written into the repository, which must stay unchanged.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # ONNX Runtime does the models' arithmetic, so BLAS in each stub needs only one thread.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    forbid_telemetry(environment)
    return environment


def _check_stub(stub: Path, python: Interpreter, environment: dict[str, str]) -> None:
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
    raise ServerError(
        f"Triton's Python backend can't start with Python {python.version} ({python.base}): {reason}. Install "
        f"its shared library (Debian, Ubuntu: apt-get install libpython{python.version}), or set PLURUM_SERVE_PYTHON."
    )
