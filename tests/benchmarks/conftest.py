"""A folder that keeps exported graphs for all benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that benchmarks take for `--work`: each graph is exported once."""
    return tmp_path_factory.mktemp("work")
