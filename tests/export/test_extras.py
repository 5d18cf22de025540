"""Commands whose optional extra is not installed name it in one line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from plurum.export.manifest import read_manifest
from plurum.run import Run
from plurum.spec import write_metadata
from tests.cli.command_line import CommandLine


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("openvino", ["--precision", "bf16"], "openvino"),
        ("modelopt", ["--target", "gpu", "--precision", "fp16"], "fp16"),
        ("onnx_graphsurgeon", ["--target", "gpu", "--precision", "fp16"], "fp16"),
    ],
)
def test_a_precision_names_the_extra_that_makes_it(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plurum: CommandLine,
    package: str,
    options: list[str],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = plurum.refused("export", run.path, "--out", tmp_path / "out", *options)
    assert f"{package!r} is not installed; run: pip install 'plurum[{extra}]'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["tensorrt_rtx", "polygraphy"])
def test_the_doctor_says_what_would_prove_that_graphs_build(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine, package: str
) -> None:
    path = shutil.copytree(repository, tmp_path / "gpu")
    manifest = read_manifest(path)
    artefacts = tuple(one.model_copy(update={"backend": "tensorrt"}) for one in manifest.artefacts)
    write_metadata(path / "export.json", manifest.model_copy(update={"artefacts": artefacts, "target": "gpu"}))
    monkeypatch.setitem(sys.modules, package, None)
    lines = [line for line in plurum.said("doctor", path).splitlines() if line.split()[1] == "build"]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("skipped")
        assert line.endswith(f"{package!r} is not installed; run: pip install 'plurum[tensorrt-rtx]'")
