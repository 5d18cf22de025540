"""The Python models' parts that run inside Triton, loaded from their files against a recorder of Triton's API."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plurum import voting

__all__ = ["MODELS", "Recorder", "Samples", "install_recorder", "loaded"]

MODELS = Path(__file__).resolve().parents[2] / "model_repository"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def loaded(part: str) -> ModuleType:
    """Return the module `part`, MODEL/FILE.py, under a name that is nobody else's."""
    spec = importlib.util.spec_from_file_location(f"tested_{Path(part).stem}", MODELS / part)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Triton's custom-metric API: refuses what aborts the real one."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, page: Samples) -> None:
        self.page = page
        self.monotone = True

    def family(self, name: str, description: str, kind: str) -> Any:
        recorder = self
        assert description

        class Metric:
            def __init__(self, labels: dict[str, str]) -> None:
                self.key = (name, frozenset(labels.items()))
                recorder.page.setdefault(self.key, 0.0)

            def increment(self, amount: float) -> None:
                assert kind == "counter"
                assert isinstance(amount, float)
                assert amount > 0
                recorder.page[self.key] += amount
                recorder.monotone &= recorder.is_monotone("plurum_confidence")

            def set(self, value: float) -> None:
                assert kind == "gauge"
                recorder.page[self.key] = value

        class Family:
            def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802 - Triton's name
                return Metric(labels)

        return Family()

    def is_monotone(self, name: str) -> bool:
        """Whether no bucket holds more than the next."""
        found = {dict(labels)["le"]: value for (one, labels), value in self.page.items() if one == f"{name}_bucket"}
        counts = [found[limit] for limit in sorted(found, key=float)]
        return counts == sorted(counts)

    def value(self, name: str, **labels: str) -> float:
        (found,) = (
            value
            for (one, has), value in self.page.items()
            if one == name and all(dict(has)[label] == text for label, text in labels.items())
        )
        return found


def install_recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Replace the modules that only Triton has by a recorder, until the test ends."""
    recorder = Recorder({})
    triton = ModuleType("triton_python_backend_utils")
    family: Any = partial(recorder.family)
    family.COUNTER, family.GAUGE = Recorder.COUNTER, Recorder.GAUGE
    triton.MetricFamily = family  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setitem(sys.modules, "voting", voting)
    monkeypatch.setitem(sys.modules, "audit", loaded("voter/audit.py"))
    return recorder
