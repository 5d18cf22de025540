"""Content of a wheel, and functions of an installation without extras."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from plurum.serving import Server

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Build from a copy: setuptools leaves a build folder, and packs files of earlier builds.
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "plurum"
    others = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=others)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True)
    (path,) = out.glob("plurum-*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of an environment with plurum installed without extras."""
    return install(tmp_path_factory.mktemp("bare") / "venv", str(wheel))


def install(folder: Path, requirement: str) -> Path:
    """Make an environment in `folder`, install a requirement, and return its `bin` folder."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", requirement], check=True)
    return folder / "bin"


@pytest.mark.parametrize(
    ("python", "extras", "there", "absent"),
    [
        ("3.14", ["client"], {"tritonclient"}, {"torch", "onnxruntime", "nvidia-pytriton", "pandas"}),
        ("3.14", ["serving", "gateway"], {"tritonclient", "starlette", "openvino"}, {"torch", "onnxruntime"}),
        ("3.14", ["export", "serving", "gpu"], {"onnxruntime-gpu", "tensorrt"}, {"onnxruntime", "nvidia-pytriton"}),
        ("3.14", ["all", "embedded"], {"torch", "onnxruntime", "openvino"}, {"onnxruntime-gpu", "nvidia-pytriton"}),
        ("3.10", ["all", "embedded"], {"torch", "onnxruntime", "openvino", "nvidia-pytriton"}, {"onnxruntime-gpu"}),
    ],
)
def test_extras_add_up(python: str, extras: list[str], there: set[str], absent: set[str]) -> None:
    options = [option for extra in extras for option in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    outcome = subprocess.run(
        [*command, "--python-version", python, *options, "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    versions = dict(line.split(" ")[0].split("==") for line in outcome.stdout.splitlines())
    assert there <= set(versions)
    assert not absent & set(versions)
    if not {"torch", "tensorrt"} & there:
        assert not [name for name in versions if name.startswith(("nvidia-", "cuda-"))]
    assert versions["numpy"].startswith("1.26.") == ("nvidia-pytriton" in there)


def test_nothing_but_plurum_lands_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"plurum"}


def test_the_wheel_has_every_package_with_its_files(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("plurum/")}
    rooms = ("training", "export", "serving", "client", "benchmarks", "model_repository")
    tracked = {
        f"plurum/{path.relative_to(ROOT)}" for room in rooms for path in (ROOT / room).rglob("*.py") if path.is_file()
    }
    assert tracked
    assert tracked <= packed
    for needed in ("voter/metrics.py", "labels/labels.py"):
        assert f"plurum/model_repository/{needed}" in packed
    for model in ("voter", "preprocess", "labels", "openvino", "trial", "manager", "cascade"):
        assert f"plurum/model_repository/{model}/model.py" in packed
    assert "plurum/benchmarks/claims/guard.json" in packed
    # Type checkers need it in programs that import plurum.client.
    assert "plurum/py.typed" in packed
    page = ROOT / "client" / "ui"
    assert {f"plurum/client/ui/{path.relative_to(page)}" for path in page.glob("[st]*[es]/*.*")} - packed == set()
    assert {
        f"plurum/serving/backends/{name}" for name in ("cores.py", "graph_model.py", "onnxruntime/model.py")
    } <= packed


@pytest.mark.timing
def test_help_answers_within_a_second(bare: Path) -> None:
    subprocess.run([bare / "plurum", "--help"], check=True, capture_output=True)  # compiles the bytecode
    times = []
    for _ in range(3):
        start = time.perf_counter()
        help_ = subprocess.run([bare / "plurum", "--help"], check=True, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    for command in ("train", "fit", "export", "serve", "predict", "demo"):
        assert command in help_.stdout
    assert min(times) < 1.0


def test_the_client_imports_bare_and_names_its_extra(bare: Path) -> None:
    code = """
import sys
from plurum.client import EnsembleClient
from plurum.errors import MissingExtraError
assert not {"torch", "timm", "onnx", "tritonclient"} & set(sys.modules), "heavy imports"
try:
    EnsembleClient()
except MissingExtraError as error:
    print(error)
"""
    answer = subprocess.run([bare / "python", "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'plurum[client]'" in answer.stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["train", "digits", "--arch", "resnet18", "--out", "run"], "training"),
        (["data", "digits"], "training"),
        (["export", "weights.pt", "--arch", "resnet18", "--classes", "a,b", "--out", "run"], "export"),
        (["doctor", "repository"], "export"),
        (["serve", "repository"], "serving"),
        (["rollout", "repository"], "serving"),
        (["gateway"], "gateway"),
        (["predict", "image.png"], "client"),
        (["ui"], "ui"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_brings_it(
    bare: Path, tmp_path: Path, command: list[str], extra: str
) -> None:
    # What is checked before a package is missed: a repository has a voter.
    (tmp_path / "repository" / "voter").mkdir(parents=True)
    (tmp_path / "repository" / "voter" / "config.pbtxt").touch()
    (tmp_path / "image.png").touch()
    (tmp_path / "weights.pt").touch()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ended = subprocess.run(
        [bare / "plurum", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert f"pip install 'plurum[{extra}]'" in ended.stderr
    assert ended.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.triton
def test_the_installed_client_requests_predictions(wheel: Path, served: Server, tmp_path: Path) -> None:
    programs = install(tmp_path / "venv", f"plurum[client] @ {wheel.as_uri()}")
    Image.new("RGB", (32, 32), "gray").save(tmp_path / "image.png")
    for way in (["--url", served.urls.grpc], ["--http", "--url", served.urls.http.removeprefix("http://")]):
        command = [str(programs / "plurum"), "predict", "image.png", "--json", *way]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert 0 < json.loads(answer.stdout)["confidence"] <= 1
