"""Commands whose optional extra is not installed name it in one line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from plurum.cli.main import run as command_line
from plurum.export.manifest import read_manifest
from plurum.export.repository import selection
from plurum.run import Run
from plurum.spec import write_metadata


def plurum(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["plurum", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        command_line()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture(autouse=True)
def exported_once(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(_: object, path: Path) -> None:
        shutil.copyfile(repository / path.name.removesuffix(".fp32.onnx") / "1" / "model.onnx", path)

    monkeypatch.setattr(selection, "onnx_from_model", copied)


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("openvino", ["--precision", "bf16"], "openvino"),
        ("modelopt", ["--target", "gpu", "--precision", "fp16"], "gpu"),
        ("onnx_graphsurgeon", ["--target", "gpu", "--precision", "fp16"], "gpu"),
    ],
)
def test_a_precision_names_the_extra_that_makes_it(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    options: list[str],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert plurum(monkeypatch, "export", run.path, "--out", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert f"{package!r} is not installed; run: pip install 'plurum[{extra}]'" in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["tensorrt_rtx", "polygraphy"])
def test_the_doctor_says_what_would_prove_that_graphs_build(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    path = shutil.copytree(repository, tmp_path / "gpu")
    manifest = read_manifest(path)
    artefacts = tuple(one.model_copy(update={"backend": "tensorrt"}) for one in manifest.artefacts)
    write_metadata(path / "export.json", manifest.model_copy(update={"artefacts": artefacts, "target": "gpu"}))
    monkeypatch.setitem(sys.modules, package, None)
    assert plurum(monkeypatch, "doctor", path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "build"]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("skipped")
        assert line.endswith(f"{package!r} is not installed; run: pip install 'plurum[tensorrt-rtx]'")
