"""Read a server's /metrics page."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["count_responses", "metrics_at", "models_at"]

_MODEL = re.compile(r'^nv_inference_request_success\{.*?model="([^"]*)"', re.MULTILINE)


def metrics_at(url: str) -> dict[str, float]:
    """Return every sample of a /metrics page, keyed by its name and sorted labels."""
    text = _page(url, timeout_s=10)
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            # The parser appends _total to every counter; Triton's own counters have no such suffix.
            name = sample.name if sample.name in text else sample.name.removesuffix("_total")
            samples[f"{name}{{{labels}}}"] = float(sample.value)
    return samples


def count_responses(url: str, models: Iterable[str], timeout_s: float) -> float:
    """Return the number of requests for `models` that Triton has completed; cheap enough to call twice a second.

    Raises:
        OSError: the page can't be read in time.
    """
    labels = [f'model="{model}"' for model in models]
    return sum(
        float(line.rpartition(" ")[2])
        for line in _page(url, timeout_s).splitlines()
        if line.startswith("nv_inference_request_success{") and any(label in line for label in labels)
    )


def models_at(url: str, timeout_s: float) -> set[str]:
    """Return the models for which a /metrics page has Triton's own counters.

    Raises:
        OSError: the page can't be read in time.
    """
    return set(_MODEL.findall(_page(url, timeout_s)))


def _page(url: str, timeout_s: float) -> str:
    with urllib.request.urlopen(url, timeout=timeout_s) as page:  # noqa: S310 (our own server's http URL)
        return str(page.read().decode())
