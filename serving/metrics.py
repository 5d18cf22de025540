"""Reading a server's /metrics page."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["metrics_at"]


def metrics_at(url: str) -> dict[str, float]:
    """Return every sample of a /metrics page, by its name and labels as the page writes them, labels sorted."""
    with urllib.request.urlopen(url, timeout=10) as page:  # noqa: S310 (our own server's http URL)
        text = page.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            # The parser ends every counter in _total; Triton's own don't.
            name = sample.name if sample.name in text else sample.name.removesuffix("_total")
            samples[f"{name}{{{labels}}}"] = float(sample.value)
    return samples
