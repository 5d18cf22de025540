"""Read from a server's /metrics page how its predictions are distributed."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from plurum.errors import ServerError, SettingsError

__all__ = ["PredictionCounts", "count_predictions"]

_MOST_BYTES = 1 << 24
_TIMEOUT_S = 10.0


@dataclass
class PredictionCounts:
    """Counts of one release's predictions, summed over servers.

    Attributes:
        labels: Number of predictions by label.
        confidence: Number of predictions with at most a confidence, by that limit; the last is infinite.
        reviews: Number of predictions that need review.
    """

    labels: dict[str, int] = field(default_factory=dict)
    confidence: dict[float, int] = field(default_factory=dict)
    reviews: int = 0


def count_predictions(addresses: Sequence[str], release: str) -> PredictionCounts:
    """Return the counts of a release's predictions since the start of the servers.

    Args:
        addresses: Pages to read: HOST:PORT, or a URL.
        release: First 12 digits of the SHA-256 of the release's `ensemble.json`.

    Raises:
        ServerError: a page can't be read, is not of Triton's, or does not have the release.
        SettingsError: an address is invalid.
    """
    counts = PredictionCounts()
    for address in addresses:
        _add_page(counts, address, _read_page(address), release)
    return counts


def _read_page(address: str) -> str:
    url = _url_from_address(address)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as page:  # noqa: S310 - http(s) alone
            data: bytes = page.read(_MOST_BYTES + 1)
        text = data.decode()
    except (OSError, HTTPException, ValueError) as error:
        raise ServerError(f"--metrics: no metrics at {address}: {error}. Give the address of Triton's page.") from error
    if len(data) > _MOST_BYTES:
        raise ServerError(f"--metrics: expected a page of at most {_MOST_BYTES >> 20} MiB, got more at {address}")
    return text


def _url_from_address(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise SettingsError(
            f"--metrics: expected HOST:PORT or http(s)://HOST:PORT/metrics, got {address!r}. Give the address of "
            "Triton's metrics, such as 127.0.0.1:8002."
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/metrics"


def _add_page(counts: PredictionCounts, address: str, page: str, release: str) -> None:
    releases = set()
    try:
        for family in text_string_to_metric_families(page):
            for name, labels, value, *_ in family.samples:
                if not name.startswith("plurum_") or "release" not in labels:
                    continue
                releases.add(labels["release"])
                if labels["release"] == release:
                    _add_sample(counts, name, labels, value)
    except (ValueError, KeyError) as error:
        raise ServerError(f"--metrics: expected metrics of Triton, got another page at {address}: {error}") from error
    if release not in releases:
        known = ", ".join(sorted(releases)) or "none"
        raise ServerError(
            f"--metrics: expected predictions of release {release}, got those of {known} at {address}. Give the "
            "repository that is served as REFERENCE."
        )


def _add_sample(counts: PredictionCounts, name: str, labels: dict[str, str], value: float) -> None:
    if not name.startswith(("plurum_predictions", "plurum_reviews", "plurum_confidence_bucket")):
        return
    if not (math.isfinite(value) and 0 <= value < 2**62):
        raise ValueError(f"{name} is {value}")
    if name.startswith("plurum_predictions"):
        counts.labels[labels["class"]] = counts.labels.get(labels["class"], 0) + int(value)
    elif name.startswith("plurum_reviews"):
        counts.reviews += int(value)
    else:
        limit = float(labels["le"])
        counts.confidence[limit] = counts.confidence.get(limit, 0) + int(value)
