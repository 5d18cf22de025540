"""Metrics of the voter on Triton's /metrics page, through Triton's custom-metric API.

All have the labels `ensemble`, its name, and `release`, the first 12 digits of the SHA-256 of its `ensemble.json`.

plurum_predictions_total{class}           counter: predictions by label, the decided class
plurum_reviews_total                      counter: predictions that need review
plurum_audits_total                       counter: predictions drawn for audit; only if the ensemble draws them
plurum_member_dissents_total{member}      counter: predictions whose label differs from this member's
plurum_settled_total{class, stage}        counter: predictions by label and by the cascade's stage that made them, from
                                          1; only if the ensemble has a cascade. Dissents are then of members that
                                          ran
plurum_baseline_settled_share{stage}      gauge: fraction of the images that left at a stage at the fit; only if the
                                          ensemble has a cascade
plurum_confidence                         histogram of the label's probability
plurum_entropy_nats                       histogram of the predictive entropy
plurum_disagreement_nats                  histogram of the mutual information
plurum_batch_size                         histogram of the number of images per vote
plurum_outlier_p_value                    histogram of the p-value of the outlier test; only if the ensemble has a test
plurum_review_reasons_total{reason}       counter: predictions by reason for review, each counted for all its reasons;
                                          only if the ensemble has an outlier test
plurum_outlier_reference_patients         gauge: number of patients of the reference images; only if the ensemble has a
                                          test
plurum_outlier_alpha                      gauge: p-value below which a prediction needs review, so the largest expected
                                          fraction of false alarms; only if the ensemble has an outlier test
plurum_ensemble_info{mode, data}          gauge, 1: the voting mode, and the data that the ensemble was fitted on
plurum_model_info{member, arch, parameters, precision, sha256}     gauge, 1: a served member

Baseline for drift; an `ensemble.json` without a baseline has none of these:

plurum_baseline_images                    gauge: number of validation images at the fit
plurum_baseline_class_share{class}        gauge: fraction of their predictions by label
plurum_baseline_confidence_share{over, le}    gauge: fraction of their predictions by the label's probability
plurum_baseline_review_share              gauge: fraction of their predictions that need review
plurum_baseline_dissent_share{member}     gauge: fraction of their predictions whose label differs from a member's

A call to this API takes some 30 µs in two processes, and its histograms accept one value per call. Predictions are
therefore queued, and a thread counts them together. It pauses three hundred times as long as the counting took, at most
a second. Counting thus takes at most a three-hundredth of one core at any load. Each of several processes counts its
own predictions, and Triton adds them up.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import voting
else:
    import voting

# Bucket limits for an `ensemble.json` without a baseline; a baseline states its own.
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_P_VALUES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
_TESTED = ("outlier", "review_reason")
_COUNTED = ("label", "probabilities", "disagreement", "member_probabilities", "review")
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
_REST, _LONGEST_REST_S = 300, 1.0


class VoterMetrics:
    """Metrics of one ensemble.

    Decrementing or setting a counter aborts this version of Triton, so only `_add` changes counters.

    Args:
        folder: Folder with the ensemble's `ensemble.json` and `precisions.json`.
    """

    def __init__(self, folder: Path) -> None:
        text = (folder / "ensemble.json").read_bytes()
        metadata = json.loads(text)
        self._labels = {"ensemble": metadata["name"], "release": hashlib.sha256(text).hexdigest()[:12]}
        # Triton removes metrics that are no longer referenced, and families must outlive their metrics.
        self._families: dict[str, Any] = {}
        self._gauges: list[Any] = []
        self._rule = voting.rule_from_ensemble(metadata)
        baseline = metadata.get("baseline")
        self._add_info(metadata, _precisions(folder))
        if baseline:
            self._add_baseline(metadata, baseline)
        self._predictions = [
            self._counter("plurum_predictions_total", "Predictions by label", {"class": name})
            for name in metadata["classes"]
        ]
        self._reviews = self._counter("plurum_reviews_total", "Predictions that need review")
        self._outlier: _Histogram | None = None
        self._reasons: list[Any] = []
        if self._rule.outliers is not None:
            self._add_outliers(self._rule.outliers)
        has_audit = metadata.get("audit_rate") is not None
        self._audits = self._counter("plurum_audits_total", "Predictions drawn for audit") if has_audit else None
        self._dissents = [
            self._counter(
                "plurum_member_dissents_total",
                "Predictions whose label differs from a member's",
                {"member": one["name"]},
            )
            for one in metadata["members"]
        ]
        self._sizes, self._settled = self._add_stages(metadata)
        limits = baseline["confidence_limits"] if baseline else _CONFIDENCE
        self._confidence = _Histogram(self._counter, "plurum_confidence", "Label's probability", limits)
        self._entropy = _Histogram(self._counter, "plurum_entropy_nats", "Predictive entropy", _NATS)
        self._disagreement = _Histogram(self._counter, "plurum_disagreement_nats", "Mutual information", _NATS)
        self._batch_size = _Histogram(self._counter, "plurum_batch_size", "Images per vote", _BATCH)
        self._waiting: deque[tuple[Mapping[str, Any], Any]] = deque()
        self._news, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def observe(self, predictions: Mapping[str, Any], counted: Any) -> None:
        """Queue predictions to be counted.

        Args:
            predictions: Arrays of a `Verdict` by name, at least `_COUNTED`, `_TESTED` if the ensemble has an outlier
                test, `members_used` if it has a cascade, and `audit` if it draws audits.
            counted: False for errors and health probes, bool `[batch]`.
        """
        self._waiting.append((predictions, counted))
        self._news.set()

    def close(self) -> None:
        """Count the queued predictions, and stop the thread."""
        self._closed.set()
        self._news.set()
        self._thread.join()
        self._count()

    def _run(self) -> None:
        rest_s = 0.0
        while not self._closed.wait(rest_s):
            self._news.wait()
            self._news.clear()
            start = time.perf_counter()
            try:
                self._count()
            except Exception as error:
                # A failure to count must not stop the voter.
                pb_utils.Logger.log_error(f"predictions were not counted: {error!r}")
            rest_s = min(_REST * (time.perf_counter() - start), _LONGEST_REST_S)

    def _count(self) -> None:
        batches = [self._waiting.popleft() for _ in range(len(self._waiting))]
        batches = [(predictions, counted) for predictions, counted in batches if counted.any()]
        if not batches:
            return
        label, probabilities, disagreement, members, review = (
            np.concatenate([predictions[name][counted] for predictions, counted in batches]) for name in _COUNTED
        )
        for metric, amount in zip(self._predictions, np.bincount(label, minlength=len(self._predictions)), strict=True):
            _add(metric, amount)
        _add(self._reviews, int(np.count_nonzero(review)))
        if self._audits is not None:
            _add(self._audits, sum(int(np.count_nonzero(one["audit"][counted])) for one, counted in batches))
        ran = np.ones(members.shape[:2], dtype=np.bool_)
        if self._settled:
            ran = np.concatenate([one["members_used"][counted] for one, counted in batches])
            self._count_stages(label, ran)
            # The other members have no probabilities.
            members = np.where(ran[..., None], members, probabilities[:, None])
        dissents = ran & (voting.decide_members(members, self._rule) != label[:, None])
        for metric, amount in zip(self._dissents, dissents.sum(axis=0), strict=True):
            _add(metric, amount)
        if self._outlier is not None:
            outlier, reasons = (
                np.concatenate([predictions[name][counted] for predictions, counted in batches]) for name in _TESTED
            )
            self._outlier.add(outlier.astype(np.float64))
            for bit, metric in enumerate(self._reasons):
                _add(metric, int(np.count_nonzero(reasons >> bit & 1)))
        self._confidence.add(np.take_along_axis(probabilities, label[:, None], axis=-1)[:, 0])
        self._entropy.add(voting.entropy(probabilities))
        self._disagreement.add(disagreement)
        self._batch_size.add(np.array([np.count_nonzero(counted) for _, counted in batches]))

    def _count_stages(self, label: Any, ran: Any) -> None:
        """Count the predictions of each stage, from the members that ran for each, bool `[batch, members]`."""
        stage = np.searchsorted(self._sizes, ran.sum(axis=1))
        for index, by_class in enumerate(self._settled):
            for metric, amount in zip(
                by_class, np.bincount(label[stage == index], minlength=len(by_class)), strict=True
            ):
                _add(metric, amount)

    def _add_stages(self, metadata: dict[str, Any]) -> tuple[list[int], list[list[Any]]]:
        """Return the number of members of each stage, and its counters by class; both empty without a cascade."""
        cascade = metadata.get("cascade")
        if cascade is None:
            return [], []
        for number, stage in enumerate(cascade["stages"], 1):
            about = "Fraction of images that left at the stage at the fit"
            self._gauge("plurum_baseline_settled_share", about, stage["share"], {"stage": str(number)})
        sizes = [*(stage["members"] for stage in cascade["stages"]), len(metadata["members"])]
        about = "Predictions by label and by the stage of the cascade that made them"
        return sizes, [
            [
                self._counter("plurum_settled_total", about, {"class": name, "stage": str(number)})
                for name in metadata["classes"]
            ]
            for number in range(1, len(sizes) + 1)
        ]

    def _add_info(self, metadata: dict[str, Any], precisions: dict[str, str]) -> None:
        """Add gauges that describe the served ensemble and its members."""
        about = {"mode": metadata["voting"]["mode"], "data": metadata["data"]["data"]}
        self._gauge("plurum_ensemble_info", "Voting mode and data of the fit", 1, about)
        for member in metadata["members"]:
            labels = {
                "member": member["name"],
                "arch": member["arch"],
                "parameters": str(member["parameters"]),
                "precision": precisions.get(member["name"], "unknown"),
                "sha256": member["sha256"],
            }
            self._gauge("plurum_model_info", "A served member", 1, labels)

    def _add_outliers(self, test: voting.OutlierTest) -> None:
        """Add the metrics of the outlier test."""
        self._gauge("plurum_outlier_alpha", "P-value below which a prediction needs review", test.alpha)
        self._gauge("plurum_outlier_reference_patients", "Patients of the reference images", test.patients)
        self._outlier = _Histogram(self._counter, "plurum_outlier_p_value", "P-value of the outlier test", _P_VALUES)
        self._reasons = [
            self._counter("plurum_review_reasons_total", "Predictions by reason for review", {"reason": name})
            for name in voting.REVIEW_REASONS
        ]

    def _add_baseline(self, metadata: dict[str, Any], baseline: dict[str, Any]) -> None:
        """Add gauges that describe the predictions at the fit."""
        self._gauge("plurum_baseline_images", "Validation images at the fit", baseline["images"])
        for name, share in zip(metadata["classes"], baseline["class_shares"], strict=True):
            self._gauge("plurum_baseline_class_share", "Fraction of predictions at the fit", share, {"class": name})
        limits = ["0.0", *_limits(baseline["confidence_limits"])]
        for over, limit, share in zip(limits[:-1], limits[1:], baseline["confidence_shares"], strict=True):
            labels = {"over": over, "le": limit}
            self._gauge("plurum_baseline_confidence_share", "Fraction of predictions at the fit", share, labels)
        self._gauge("plurum_baseline_review_share", "Fraction of reviews at the fit", baseline["review_share"])
        for member, share in zip(metadata["members"], baseline["dissent_shares"], strict=True):
            labels = {"member": member["name"]}
            self._gauge("plurum_baseline_dissent_share", "Fraction of dissents at the fit", share, labels)

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
    """A histogram made of counters with a histogram's series names, so that many values take one call.

    Prometheus can't tell the difference.
    """

    def __init__(self, counter: Callable[..., Any], name: str, description: str, limits: Sequence[float]) -> None:
        self._limits = np.asarray(limits, dtype=np.float64)
        self._sum = counter(f"{name}_sum", description)
        self._count = counter(f"{name}_count", description)
        self._buckets = [counter(f"{name}_bucket", description, {"le": limit}) for limit in _limits(limits)]

    def add(self, values: Any) -> None:
        """Add `values` to the histogram, float `[n]`."""
        _add(self._sum, values.sum())
        _add(self._count, len(values))
        places = np.searchsorted(self._limits, values)
        counts = np.bincount(places, minlength=len(self._buckets)).cumsum()
        # Start with the largest limit, so that a concurrent reader never sees a bucket above the next one.
        for bucket, count in zip(reversed(self._buckets), reversed(counts), strict=True):
            _add(bucket, count)


def _add(counter: Any, amount: float) -> None:
    if amount > 0:
        counter.increment(float(amount))


def _limits(limits: Sequence[float]) -> list[str]:
    """Return histogram limits in the notation of Prometheus 3."""
    return [*(str(float(limit)) for limit in limits), "+Inf"]


def _precisions(folder: Path) -> dict[str, str]:
    """Return the precision of each member that `precisions.json` names."""
    path = folder / "precisions.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
