"""The reference: each public name has an example, and the examples run as they stand there."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.run import Run
from plurum.serving import Server
from tests.docs.pages import blocks, run_python


def example_code(package: str) -> str:
    return "\n".join(blocks(f"reference/{package}.md", "python"))


@pytest.mark.parametrize("package", ["client", "export", "serving", "training"])
def test_each_public_name_has_an_example(package: str) -> None:
    code = example_code(package)
    module = importlib.import_module(f"plurum.{package}")
    # Aliases with the names of earlier versions need none.
    names = [name for name in module.__all__ if getattr(getattr(module, name), "__name__", name) == name]
    assert len(names) > 5
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("package", ["client", "export", "serving", "training"])
def test_the_examples_run(package: str, run: Run, repository: Path, served: Server, tmp_path: Path) -> None:
    Image.fromarray(np.array(run.pixels()[0])).save(tmp_path / "scan.png")
    if package != "training":
        shutil.copytree(run.path, tmp_path / "run")
        shutil.copytree(repository, tmp_path / "model_repository")
        for member in run.ensemble().members:
            shutil.copyfile(run.checkpoint(member), tmp_path / f"{member.name}.safetensors")
    assert run_python(example_code(package).replace("127.0.0.1:8001", served.urls.grpc), tmp_path).strip()
