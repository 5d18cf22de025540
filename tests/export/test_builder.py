"""Plans of TensorRT 10 and 11, built by small fakes, and the version that Triton loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.errors import RepositoryError
from plurum.export.engines import build as engines
from plurum.export.engines import nvinfer
from plurum.export.engines.build import engine_from_onnx, plan_from_onnx, read_plan
from plurum.export.engines.nvinfer import check_tensorrt, is_same_tensorrt, loaded_version, version_from_number

FAKES = Path(__file__).parent / "fakes"
VERSIONS = {"10": "10.13.2.6", "11": "11.0.1.3"}
LIBRARY = "int getInferLibVersion(void) {{ return {number}; }}\n"


@pytest.fixture(params=VERSIONS)
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Fake TensorRT of this version, and a fake GPU."""
    version = VERSIONS[request.param]
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("FAKE_TENSORRT", version)
    monkeypatch.setattr(engines, "gpu_capability", lambda: "8.9")
    return version


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a graph")
    return path


def test_a_plan_is_built_strongly_typed_for_every_batch(
    tensorrt: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvinfer, "_NAMES", ())
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"timed")
    plan = plan_from_onnx(graph, 16, tmp_path / "model.plan", cache)
    told = json.loads((tmp_path / "model.plan").read_bytes())
    # TensorRT 11 has no such flag: its networks are always strongly typed.
    assert told["network"] == (1 << 1 if tensorrt.startswith("10.") else 0)
    assert told["profile"] == {"PIXELS": [[1, 8, 8, 3], [8, 8, 8, 3], [16, 8, 8, 3]]}
    assert told["cache"] == "timed"
    assert cache.read_bytes() == b"timed+"
    assert read_plan(tmp_path / "model.plan") == plan
    assert (plan.tensorrt, plan.profile) == (tensorrt, (1, 8, 16))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.onnx", "model.plan", "model.plan.json", "timing.cache"}


def test_what_does_not_parse_or_build_says_why(
    tensorrt: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tensorrt
    with pytest.raises(RepositoryError, match=r"TensorRT can't parse .*unparsable\.onnx: In node 3: no importer"):
        engine_from_onnx(tmp_path / "unparsable.onnx", 16, "tensorrt")
    monkeypatch.setenv("FAKE_TENSORRT_BUILDS", "no")
    with pytest.raises(RepositoryError, match=r"TensorRT parses .*model\.onnx and can't build it: no tactic"):
        engine_from_onnx(graph, 16, "tensorrt")


@pytest.mark.usefixtures("tensorrt")
def test_no_plan_is_built_that_triton_does_not_load(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvinfer, "loaded_version", lambda: "10.9.0")
    with pytest.raises(RepositoryError, match=r"expected 10\.9\.0, the .*run: pip install 'tensorrt==10\.9\.0\.\*'"):
        plan_from_onnx(graph, 16, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.parametrize(
    ("number", "version"), [(101302, "10.13.2"), (100000, "10.0.0"), (110001, "11.0.1"), (8601, "8.6.1")]
)
def test_a_version_as_a_number(number: int, version: str) -> None:
    assert version_from_number(number) == version


def test_which_versions_load_each_others_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_same_tensorrt("10.13.2", "10.13.2.6.post1")
    assert not is_same_tensorrt("10.13.2", "10.13.3.9")
    assert not is_same_tensorrt("10.1.3", "10.13.2")
    monkeypatch.setattr(nvinfer, "loaded_version", lambda: None)
    check_tensorrt("10.13.2")


@pytest.mark.parametrize(("name", "number"), [("libnvinfer.so.10", 101302), ("libnvinfer.so.11", 110001)])
def test_the_library_that_the_loader_finds_is_asked(tmp_path: Path, name: str, number: int) -> None:
    """The printed command pins pip's TensorRT to this version inside the container."""
    (tmp_path / "fake.c").write_text(LIBRARY.format(number=number))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / name, tmp_path / "fake.c"], check=True)
    told = subprocess.run(
        [sys.executable, "-c", "from plurum.export.engines.nvinfer import main; main()"],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{version_from_number(number)}.*\n"


def test_the_library_that_tritons_backend_names_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tmp_path / "libtriton_tensorrt.so"
    backend.write_bytes(b"\x7fELF...libnvinfer.so.10\0libnvinfer_plugin.so.10\0")
    asked: list[str] = []

    class Library:
        def __init__(self, name: str) -> None:
            asked.append(name)
            raise OSError

    monkeypatch.setattr(nvinfer, "_BACKEND", backend)
    monkeypatch.setattr("ctypes.CDLL", Library)
    assert loaded_version() is None
    assert asked == ["libnvinfer.so.10", "libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so"]


def test_where_there_is_no_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvinfer, "loaded_version", lambda: None)
    with pytest.raises(RepositoryError, match="inside the container that serves"):
        nvinfer.main()
