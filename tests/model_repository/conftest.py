"""A recorder of Triton's API for the parts of the Python models."""

from __future__ import annotations

import pytest

from tests.model_repository.triton_recorder import Recorder, install_recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return install_recorder(monkeypatch)
