"""What tests of serving share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

_SLOWLY = """

import time
_execute = TritonPythonModel.execute

def slowly(self, requests):
    time.sleep(0.05 * len(requests))
    return _execute(self, requests)

TritonPythonModel.execute = slowly
"""


@pytest.fixture
def slow(repository: Path, tmp_path: Path) -> Path:
    """A repository whose voter takes 50 ms a request: however fast a machine is, most of many are in flight a while."""
    copy = shutil.copytree(repository, tmp_path / "repository")
    with (copy / "voter" / "1" / "model.py").open("a") as file:
        file.write(_SLOWLY)
    return copy
