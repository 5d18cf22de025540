"""What the voter reports on Triton's own /metrics, through Triton's custom-metric API.

plurum_predictions_total{ensemble, class}      counter
plurum_reviews_total{ensemble}                 counter: answers sent to a person
plurum_confidence{ensemble}                    histogram of the winner's probability
plurum_disagreement_nats{ensemble}             histogram of the mutual information
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.voting import Bools, Verdict

CONFIDENCE_BUCKETS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
DISAGREEMENT_BUCKETS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]


class Metrics:
    """The metrics of one ensemble.

    Decrementing or setting a counter aborts this version of Triton as a whole, so nothing but `observe` touches
    them, and it only ever adds counts of rows.
    """

    def __init__(self, ensemble: str, classes: Sequence[str]) -> None:
        kinds = pb_utils.MetricFamily
        labels = {"ensemble": ensemble}
        # The families must outlive their metrics.
        self._families = [
            kinds(name="plurum_predictions_total", description="Answers by winning class", kind=kinds.COUNTER),
            kinds(name="plurum_reviews_total", description="Answers sent to a person", kind=kinds.COUNTER),
            kinds(name="plurum_confidence", description="Probability of the winning class", kind=kinds.HISTOGRAM),
            kinds(
                name="plurum_disagreement_nats",
                description="Mutual information between answer and member, 0 when all say the same",
                kind=kinds.HISTOGRAM,
            ),
        ]
        predictions, reviews, confidence, disagreement = self._families
        self._predictions = [predictions.Metric(labels={**labels, "class": name}) for name in classes]
        self._reviews = reviews.Metric(labels=labels)
        self._confidence = confidence.Metric(labels=labels, buckets=CONFIDENCE_BUCKETS)
        self._disagreement = disagreement.Metric(labels=labels, buckets=DISAGREEMENT_BUCKETS)

    def observe(self, verdict: Verdict, counted: Bools) -> None:
        """Add the verdict's rows where `counted` [batch] is true."""
        winners = np.bincount(verdict.label[counted], minlength=len(self._predictions))
        for index in np.flatnonzero(winners):
            self._predictions[index].increment(float(winners[index]))
        if reviews := int(np.count_nonzero(verdict.review & counted)):
            self._reviews.increment(float(reviews))
        self._fill(self._confidence, verdict.probabilities.max(axis=-1)[counted])
        self._fill(self._disagreement, verdict.disagreement[counted])

    @staticmethod
    def _fill(histogram: Any, values: Any) -> None:
        for value in values.tolist():
            histogram.observe(value)
