"""The command that `plurum export --target gpu` prints, run without Docker and a GPU."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.cli.export import CONTAINER, PACKED, _container_command

ROOT = Path(__file__).resolve().parents[2]


def test_everything_that_a_wheel_is_made_of_is_copied() -> None:
    rooms = {link.name for link in (ROOT / "src" / "plurum").iterdir() if link.is_symlink()}
    assert set(PACKED) == rooms | {"pyproject.toml", "README.md", "LICENSE", "src"}


def test_the_container_and_what_it_is_given(tmp_path: Path) -> None:
    words = shlex.split(_container_command(tmp_path / "my repository"))
    assert words[:5] == ["docker", "run", "--gpus", "all", "--rm"]
    assert words[5:9] == ["-v", f"{ROOT}:/clone:ro", "-v", f"{tmp_path}/my repository:/repository"]
    assert words[9:12] == [CONTAINER, "bash", "-c"]
    assert CONTAINER in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("found", [True, False], ids=["TensorRT", "no TensorRT"])
def test_inside_it_the_builder_is_pinned_to_tritons_tensorrt(tmp_path: Path, found: bool) -> None:
    """Run its script with fakes of pip, of plurum and of the container's libnvinfer."""
    stands, log = tmp_path / "bin", tmp_path / "log"
    stands.mkdir()
    for name, does in (("pip", f'echo "pip $*" >> {log}'), ("plurum", f'echo "plurum $*" >> {log}')):
        (stands / name).write_text(f"#!/bin/sh\n{does}\n")
    (stands / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for stand in stands.iterdir():
        stand.chmod(0o755)
    if found:
        (tmp_path / "fake.c").write_text("int getInferLibVersion(void) { return 101302; }\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvinfer.so.10", tmp_path / "fake.c"], check=True)
    script = shlex.split(_container_command(tmp_path / "repository"))[-1]
    copied = "/tmp/plurum"  # noqa: S108 - of the container
    script = script.replace(copied, f"{tmp_path}/plurum").replace("cd /clone", f"cd {ROOT}")
    path = {"PATH": f"{stands}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(tmp_path)}
    ended = subprocess.run(["bash", "-c", script], env=os.environ | path, check=False, capture_output=True)
    install = f"pip install --break-system-packages {tmp_path}/plurum[export] polygraphy"
    if found:
        assert ended.returncode == 0, ended.stderr
        assert log.read_text().splitlines() == [
            install,
            "pip install --break-system-packages tensorrt==10.13.2.*",
            "plurum export --build-engines /repository",
        ]
        assert (tmp_path / "plurum" / "src" / "plurum" / "export").is_symlink()
        assert (tmp_path / "plurum" / "src" / "plurum" / "export" / "engines" / "nvinfer.py").is_file()
    else:
        assert ended.returncode != 0
        assert log.read_text().splitlines() == [install]
