"""Read Triton's /metrics page, which lags about a second behind the predictions."""

from __future__ import annotations

import time

from plurum.serving.triton.metrics import metrics_at

__all__ = ["wait_for_counts"]

# Longer than the page lags behind on a busy machine.
_QUIET_S, _LONGEST_S = 2.0, 30.0


def wait_for_counts(url: str) -> dict[str, float]:
    """Return the samples of the page at `url` once the voter's counts no longer change."""
    deadline = time.monotonic() + _LONGEST_S
    last, since = metrics_at(url), time.monotonic()
    while time.monotonic() - since < _QUIET_S and time.monotonic() < deadline:
        time.sleep(0.1)
        now = metrics_at(url)
        if _voters(now) != _voters(last):
            since = time.monotonic()
        last = now
    return last


def _voters(samples: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in samples.items() if name.startswith("plurum_")}
