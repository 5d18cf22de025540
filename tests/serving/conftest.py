"""What tests of serving share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.servers import changed_repository

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
    return changed_repository(repository, tmp_path, _SLOWLY)
