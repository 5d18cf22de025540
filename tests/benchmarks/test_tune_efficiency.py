"""What is made of the figures of a tuned repository; real servers are in tests/cli/test_tune.py."""

from __future__ import annotations

import math

import pytest

from plurum.benchmarks.claims.tune_efficiency import ideal_p99, ratios


def test_the_ratio_is_the_best_served_over_the_best_in_process_case() -> None:
    figures = {
        "in-process, onnxruntime, one image a core, batches of 1": [20.0, 19.0, 90.0],
        "in-process, onnxruntime, 2 threads on one image, batches of 1": [15.0, 15.0, 15.0],
        "ensemble_pixels, gRPC, 2 clients": [10.0, 10.0, 10.0],
        "ensemble_pixels, HTTP, 8 clients": [18.0, 19.0, 1.0],
        "ensemble, gRPC, 8 clients": [16.0, 16.0, 16.0],
        "ensemble_pixels by 4, HTTP, 4 clients": [19.0, 19.0, 19.0],
        "ensemble by 4, HTTP, 4 clients": [16.5, 16.5, 16.5],
    }
    found = ratios(figures, decode_s=0.02, cores=2)
    assert found["ensemble_pixels"]["ratio"] == round(18 / 20, 4)
    # An image takes 1/20 s to compute and 0.01 s of each core to decode.
    assert found["ensemble"]["ceiling"] == pytest.approx(1 / 0.06)
    assert found["ensemble"]["ratio"] == round(16 * 0.06, 4)
    assert (found["ensemble_pixels by 4"]["ratio"], found["ensemble by 4"]["ratio"]) == (0.95, 0.99)
    assert found["ensemble_pixels"]["case"] == "ensemble_pixels, HTTP, 8 clients"


def test_the_ideal_queue_is_erlangs() -> None:
    """Of one server: P(wait ≤ t) = (1 - ρ) Σ_{k ≤ t} (ρ(k - t))^k / k! · e^{-ρ(k - t)} (Erlang, 1909)."""
    load = 0.5
    waited = ideal_p99(load, 1) - 1
    terms = ((load * (k - waited)) ** k / math.factorial(k) * math.exp(-load * (k - waited)) for k in range(5))
    assert (1 - load) * sum(one for k, one in enumerate(terms) if k <= waited) == pytest.approx(0.99, abs=0.001)
    assert ideal_p99(0.5, 16) == pytest.approx(1)
    assert 2 < ideal_p99(1, 2) < ideal_p99(load, 1)
