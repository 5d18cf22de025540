"""The reference: each public name has an example, and the examples run as they stand there."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.run import Run
from plurum.serving import Server
from tests.docs.pages import blocks, run_python
from tests.training.data_files import digit_arrays, save_npz

# Four classes and small members: training and exporting the others takes minutes.
SMALLER = {
    '"digits"': '"digits.npz"',
    "num_classes=10": "num_classes=4",
    "resnet10t": "test_resnet",
    "regnetx_002": "test_byobnet",
}


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
@pytest.mark.parametrize("package", ["client", "serving"])
def test_the_examples_run(package: str, run: Run, repository: Path, served: Server, tmp_path: Path) -> None:
    Image.fromarray(np.array(run.pixels()[0])).save(tmp_path / "scan.png")
    copy_run(run, repository, tmp_path)
    assert run_python(example_code(package).replace("127.0.0.1:8001", served.urls.grpc), tmp_path).strip()


def copy_run(run: Run, repository: Path, folder: Path) -> None:
    shutil.copytree(run.path, folder / "run")
    shutil.copytree(repository, folder / "model_repository")
    for member in run.ensemble().members:
        shutil.copyfile(run.checkpoint(member), folder / f"{member.name}.safetensors")


@pytest.mark.slow
def test_the_examples_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_npz(tmp_path / "digits.npz", digit_arrays())
    code = example_code("training")
    for old, new in SMALLER.items():
        assert old in code
        code = code.replace(old, new)
    assert printed_by(code, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_examples_of_export_run(
    run: Run, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(run, repository, tmp_path)
    assert printed_by(example_code("export"), tmp_path, monkeypatch)


def printed_by(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what examples print in this process, where warnings are errors and PyTorch is imported already."""
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})  # noqa: S102 - our own page
    return printed.getvalue().strip()
