"""What the voter reports on Triton's own /metrics, through Triton's custom-metric API.

All carry `ensemble`, its name, and `release`, the first 12 digits of the SHA-256 of its `ensemble.json`.

plurum_predictions_total{class}           counter: answers by winning class
plurum_reviews_total                      counter: answers sent to a person
plurum_member_dissents_total{member}      counter: answers that this member, asked alone, would have given otherwise
plurum_confidence                         histogram of the winner's probability
plurum_entropy_nats                       histogram of the predictive entropy
plurum_disagreement_nats                  histogram of the mutual information
plurum_batch_size                         histogram of how many images were voted on at once
plurum_ensemble_info{mode, data}          gauge, 1: how it votes and what it was fitted on
plurum_model_info{member, arch, parameters, precision, sha256}     gauge, 1: a member as it is served

What drift is measured against; a contract from before the fit wrote that down has none:

plurum_baseline_images                    gauge: validation images answered at the fit
plurum_baseline_class_share{class}        gauge: share of the answers among those, by winning class
plurum_baseline_confidence_share{over, le}    gauge: likewise, by the winner's probability: over … and at most …
plurum_baseline_review_share              gauge: share of the answers among those that a person should look at
plurum_baseline_dissent_share{member}     gauge: share of the answers among those that a member differs from

A call to this API takes some 30 µs of two processes, and its histograms take one value a call. So answers are only put
aside where they are given; a thread counts them together, and rests three hundred times as long as that took: counting
takes no more than a three-hundredth of one core, whatever the load, and the page is behind by a second at most. Where
several processes answer each counts its own, and Triton adds them up.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import voting
else:
    import voting

# Of contracts without a baseline; others state the limits that their fit counted with.
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
_REST, _LONGEST_REST_S = 300, 1.0


class Answers(NamedTuple):
    """What is counted of a batch, NumPy arrays of the shapes that `Verdict` has.

    Attributes:
        label: `[batch]`, the winning class.
        probabilities: `[batch, classes]`.
        disagreement: `[batch]`, nats.
        member_probabilities: `[batch, members, classes]`.
        review: `[batch]`, bool.
        counted: `[batch]`, bool: not the errors, and not the server's own questions.
    """

    label: Any
    probabilities: Any
    disagreement: Any
    member_probabilities: Any
    review: Any
    counted: Any


class Metrics:
    """The metrics of one ensemble, by the contract in `folder`.

    Decrementing or setting a counter aborts this version of Triton as a whole, so nothing but `_add` touches them.
    """

    def __init__(self, folder: Path) -> None:
        text = (folder / "ensemble.json").read_bytes()
        contract = json.loads(text)
        self._labels = {"ensemble": contract["name"], "release": hashlib.sha256(text).hexdigest()[:12]}
        # What is no longer held leaves the page; families must outlive their metrics.
        self._families: dict[str, Any] = {}
        self._gauges: list[Any] = []
        baseline = contract.get("baseline")
        self._state(contract, _precisions(folder))
        if baseline:
            self._state_baseline(contract, baseline)
        self._predictions = [
            self._counter("plurum_predictions_total", "Answers by winning class", {"class": name})
            for name in contract["classes"]
        ]
        self._reviews = self._counter("plurum_reviews_total", "Answers sent to a person")
        self._dissents = [
            self._counter("plurum_member_dissents_total", "Answers that a member differs from", {"member": one["name"]})
            for one in contract["members"]
        ]
        limits = baseline["confidence_limits"] if baseline else _CONFIDENCE
        self._confidence = _Histogram(self._counter, "plurum_confidence", "Winner's probability", limits)
        self._entropy = _Histogram(self._counter, "plurum_entropy_nats", "Predictive entropy", _NATS)
        self._disagreement = _Histogram(self._counter, "plurum_disagreement_nats", "Mutual information", _NATS)
        self._batch_size = _Histogram(self._counter, "plurum_batch_size", "Images voted on at once", _BATCH)
        self._waiting: deque[Answers] = deque()
        self._news, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._count_on, name="metrics", daemon=True)
        self._thread.start()

    def observe(self, answers: Answers) -> None:
        """Have the answers counted, soon."""
        self._waiting.append(answers)
        self._news.set()

    def close(self) -> None:
        """Count what is left, and end."""
        self._closed.set()
        self._news.set()
        self._thread.join()
        self._count()

    def _count_on(self) -> None:
        rest_s = 0.0
        while not self._closed.wait(rest_s):
            self._news.wait()
            self._news.clear()
            start = time.perf_counter()
            try:
                self._count()
            except Exception as error:
                # Who answers must not be stopped by who counts.
                pb_utils.Logger.log_error(f"answers were not counted: {error!r}")
            rest_s = min(_REST * (time.perf_counter() - start), _LONGEST_REST_S)

    def _count(self) -> None:
        batches = [self._waiting.popleft() for _ in range(len(self._waiting))]
        batches = [batch for batch in batches if batch.counted.any()]
        if not batches:
            return
        kept = np.concatenate([batch.counted for batch in batches])
        label, probabilities, disagreement, members, review = (
            np.concatenate(parts)[kept] for parts in list(zip(*batches, strict=True))[:-1]
        )
        for metric, amount in zip(self._predictions, np.bincount(label, minlength=len(self._predictions)), strict=True):
            _add(metric, amount)
        _add(self._reviews, np.count_nonzero(review))
        dissents = np.count_nonzero(members.argmax(axis=-1) != label[:, None], axis=0)
        for metric, amount in zip(self._dissents, dissents, strict=True):
            _add(metric, amount)
        self._confidence.add(probabilities.max(axis=-1))
        self._entropy.add(voting.entropy(probabilities))
        self._disagreement.add(disagreement)
        self._batch_size.add(np.array([np.count_nonzero(batch.counted) for batch in batches]))

    def _state(self, contract: dict[str, Any], precisions: dict[str, str]) -> None:
        """Say what is served."""
        about = {"mode": contract["voting"]["mode"], "data": contract["data"]["data"]}
        self._gauge("plurum_ensemble_info", "How it votes and what it was fitted on", 1, about)
        for member in contract["members"]:
            labels = {
                "member": member["name"],
                "arch": member["arch"],
                "parameters": str(member["parameters"]),
                "precision": precisions.get(member["name"], "unknown"),
                "sha256": member["sha256"],
            }
            self._gauge("plurum_model_info", "A member as it is served", 1, labels)

    def _state_baseline(self, contract: dict[str, Any], baseline: dict[str, Any]) -> None:
        """Say what the answers were like at the fit."""
        self._gauge("plurum_baseline_images", "Validation images answered at the fit", baseline["images"])
        for name, share in zip(contract["classes"], baseline["class_shares"], strict=True):
            self._gauge("plurum_baseline_class_share", "Share of the answers at the fit", share, {"class": name})
        limits = ["0.0", *_limits(baseline["confidence_limits"])]
        for over, limit, share in zip(limits[:-1], limits[1:], baseline["confidence_shares"], strict=True):
            labels = {"over": over, "le": limit}
            self._gauge("plurum_baseline_confidence_share", "Share of the answers at the fit", share, labels)
        self._gauge("plurum_baseline_review_share", "Share of reviews at the fit", baseline["review_share"])
        for member, share in zip(contract["members"], baseline["dissent_shares"], strict=True):
            self._gauge("plurum_baseline_dissent_share", "Share at the fit", share, {"member": member["name"]})

    def _counter(self, name: str, description: str, labels: dict[str, str] | None = None) -> Any:
        return self._metric(name, description, pb_utils.MetricFamily.COUNTER, labels)

    def _gauge(self, name: str, description: str, value: float, labels: dict[str, str] | None = None) -> None:
        gauge = self._metric(name, description, pb_utils.MetricFamily.GAUGE, labels)
        gauge.set(float(value))
        self._gauges.append(gauge)

    def _metric(self, name: str, description: str, kind: Any, labels: dict[str, str] | None) -> Any:
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        return self._families[name].Metric(labels={**self._labels, **(labels or {})})


class _Histogram:
    """Counters with the names of a histogram's series: Prometheus knows no difference, and many values are one call."""

    def __init__(self, counter: Callable[..., Any], name: str, description: str, limits: Sequence[float]) -> None:
        self._limits = np.asarray(limits, dtype=np.float64)
        self._sum = counter(f"{name}_sum", description)
        self._count = counter(f"{name}_count", description)
        self._buckets = [counter(f"{name}_bucket", description, {"le": limit}) for limit in _limits(limits)]

    def add(self, values: Any) -> None:
        """Count `values` [n]."""
        _add(self._sum, values.sum())
        _add(self._count, len(values))
        places = np.searchsorted(self._limits, values)
        counts = np.bincount(places, minlength=len(self._buckets)).cumsum()
        # From the last: whoever reads in between must not find more values below a limit than below the next.
        for bucket, count in zip(reversed(self._buckets), reversed(counts), strict=True):
            _add(bucket, count)


def _add(counter: Any, amount: float) -> None:
    if amount > 0:
        counter.increment(float(amount))


def _limits(limits: Sequence[float]) -> list[str]:
    """Return histogram limits as Prometheus 3 writes them, whichever way they came."""
    return [*(str(float(limit)) for limit in limits), "+Inf"]


def _precisions(folder: Path) -> dict[str, str]:
    """Return what each member computes in, as far as whoever exported it has said so."""
    path = folder / "precisions.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
