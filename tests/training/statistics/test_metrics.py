"""Metrics, against scikit-learn, torchmetrics, published formulas and cases computed by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn import metrics

from plurum.predictions.scores import BINS, confidence_bins
from plurum.training.statistics.metrics import METRICS, PER_CLASS, LabelledPredictions, MetricDraws, Scorer


def simulated(images: int, classes: int, *, decimals: int = 6, seed: int = 0) -> LabelledPredictions:
    """Return mostly correct predictions; few decimals give many equal confidences."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    probabilities = rng.dirichlet(np.ones(classes), images)
    probabilities[np.arange(images), labels] += 0.4
    steps = np.floor(probabilities / probabilities.sum(axis=1, keepdims=True) * 10**decimals)
    steps[:, -1] = 10**decimals - steps[:, :-1].sum(axis=1)
    probabilities = steps / 10**decimals
    return LabelledPredictions(probabilities, probabilities.argmax(axis=1), labels)


def plain(predictions: LabelledPredictions) -> MetricDraws:
    return Scorer(predictions)(np.ones((len(predictions.labels), 1), dtype=np.float32))


def value(predictions: LabelledPredictions, metric: str) -> float:
    return float(plain(predictions).overall[metric][0])


def by_confidence(right: list[int], confidence: list[float] | None = None) -> LabelledPredictions:
    """Return two-class predictions, most confident first; 1 marks a correct one, 0 a wrong one."""
    sure = np.linspace(0.99, 0.6, len(right)) if confidence is None else np.array(confidence)
    labels = np.where(np.array(right) == 1, 0, 1)
    return LabelledPredictions(np.column_stack([sure, 1 - sure]), np.zeros(len(right), dtype=np.int64), labels)


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_equal_those_of_scikit_learn(classes: int, decimals: int) -> None:
    predictions = simulated(300, classes, decimals=decimals)
    p, labels, winners = predictions.probabilities, predictions.labels, predictions.winners
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, winners, average="macro")
    one_hot = np.eye(classes)[labels]
    confusion = metrics.multilabel_confusion_matrix(labels, winners)
    expected = {
        "accuracy": metrics.accuracy_score(labels, winners),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, winners),
        "precision": precision,
        "recall": recall,
        "specificity": (confusion[:, 0, 0] / confusion[:, 0].sum(axis=1)).mean(),
        "f1": f1,
        "roc_auc": np.mean([metrics.roc_auc_score(one_hot[:, i], p[:, i]) for i in range(classes)]),
        "average_precision": metrics.average_precision_score(one_hot, p, average="macro"),
        "nll": -np.log(np.maximum(p[np.arange(300), labels], np.finfo(float).tiny)).mean(),
        "brier": metrics.brier_score_loss(labels, p, scale_by_half=False, labels=range(classes)),
    }
    found = plain(predictions)
    for name, number in expected.items():
        assert found.overall[name][0] == pytest.approx(number, abs=1e-6), name
    per_class = metrics.precision_recall_fscore_support(labels, winners)
    for name, numbers in zip(("precision", "recall", "f1"), per_class[:3], strict=True):
        np.testing.assert_allclose(found.per_class[name][:, 0], numbers, err_msg=name)
    if decimals == 6:
        assert found.overall["nll"][0] == pytest.approx(metrics.log_loss(labels, p))


def test_many_draws_at_once_are_each_the_metrics_of_what_was_drawn() -> None:
    predictions = simulated(120, 3, decimals=1)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(120, np.full(120, 1 / 120), 5).T
    together = Scorer(predictions)(counts.astype(np.float32))
    for draw in range(5):
        rows = np.repeat(np.arange(120), counts[:, draw])
        alone = plain(
            LabelledPredictions(predictions.probabilities[rows], predictions.winners[rows], predictions.labels[rows])
        )
        for name in METRICS:
            assert together.overall[name][draw] == pytest.approx(alone.overall[name][0], abs=1e-9), name
        for name in PER_CLASS:
            np.testing.assert_allclose(together.per_class[name][:, draw], alone.per_class[name][:, 0], err_msg=name)


def test_every_metric_has_a_name_for_people() -> None:
    found = plain(simulated(50, 3))
    assert tuple(found.overall) == tuple(METRICS)
    assert tuple(found.per_class) == PER_CLASS


def test_ece_by_hand() -> None:
    # Two bins: confidence 0.9 with one of two correct, and 0.6 with both correct.
    predictions = by_confidence([1, 0, 1, 1], [0.9, 0.9, 0.61, 0.61])
    assert value(predictions, "ece") == pytest.approx((2 * abs(0.9 - 0.5) + 2 * abs(0.61 - 1)) / 4)
    # Within a bin, overconfidence and underconfidence cancel out.
    assert value(by_confidence([1, 0], [0.7, 0.7]), "ece") == pytest.approx(0.2)
    assert value(by_confidence([1, 1], [1.0, 1.0]), "ece") == 0


def test_ece_is_that_of_torchmetrics() -> None:
    import torch
    from torchmetrics.classification import MulticlassCalibrationError

    for seed in range(3):
        predictions = simulated(500, 4, seed=seed)
        theirs = MulticlassCalibrationError(num_classes=4, n_bins=BINS, norm="l1")
        number = theirs(torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels))
        assert value(predictions, "ece") == pytest.approx(float(number), abs=1e-6)


def test_bins_hold_their_upper_end() -> None:
    assert confidence_bins(np.array([0.0, 1e-9, 1 / BINS, 1 / BINS + 1e-9, 1.0])).tolist() == [0, 0, 0, 1, BINS - 1]
    # Slightly above 1, as from float32 arithmetic.
    assert confidence_bins(np.array([1.0000001])).tolist() == [BINS - 1]


def test_brier_is_the_sum_over_classes() -> None:
    predictions = LabelledPredictions(np.array([[0.7, 0.2, 0.1]]), np.array([0]), np.array([1]))
    assert value(predictions, "brier") == pytest.approx(0.49 + 0.64 + 0.01)
    wrong = LabelledPredictions(np.array([[1.0, 0.0]]), np.array([0]), np.array([1]))
    assert value(wrong, "brier") == 2


def test_aurc_and_augrc_by_hand() -> None:
    predictions = by_confidence([1, 0, 1, 0])
    # Risks at coverages 1/4, 2/4, 3/4 and 1: 0, 1/2, 1/3, 2/4.
    assert value(predictions, "aurc") == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # Generalised risks 0, 0, 1/4, 1/4, 2/4 at coverages 0, …, 1, joined by lines.
    assert value(predictions, "augrc") == pytest.approx((0 + 1 / 8 + 1 / 4 + 3 / 8) / 4)
    assert value(by_confidence([1, 1, 1]), "aurc") == 0
    assert value(by_confidence([0, 0, 0]), "aurc") == 1
    assert value(by_confidence([0, 0, 0]), "augrc") == pytest.approx(1 / 2)


def test_equally_sure_answers_count_as_in_random_order() -> None:
    tied = by_confidence([1, 0, 0, 1, 0], [0.9, 0.8, 0.8, 0.8, 0.6])
    orders = [
        value(by_confidence([1, *middle, 0], [0.9, 0.82, 0.81, 0.8, 0.6]), "aurc") for middle in permutations([0, 0, 1])
    ]
    assert value(tied, "aurc") == pytest.approx(np.mean(orders))
    assert max(orders) > min(orders)


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_augrc_is_its_closed_form(decimals: int) -> None:
    """Traub et al. (arXiv 2407.01032): AUGRC from accuracy and the AUROC of confidence for errors."""
    predictions = simulated(400, 3, decimals=decimals)
    accuracy = value(predictions, "accuracy")
    area = metrics.roc_auc_score(~predictions.wrong, predictions.confidence)
    expected = (1 - area) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert value(predictions, "augrc") == pytest.approx(expected)


def test_a_class_that_is_not_there_is_left_out_of_means() -> None:
    predictions = simulated(200, 3)
    rows = np.flatnonzero(predictions.labels != 2)
    found = plain(
        LabelledPredictions(predictions.probabilities[rows], predictions.winners[rows], predictions.labels[rows])
    )
    for name in PER_CLASS:
        assert np.isnan(found.per_class[name][2, 0]), name
        assert found.overall[name][0] == pytest.approx(found.per_class[name][:2, 0].mean()), name
    assert np.isfinite(np.array(list(found.overall.values()))).all()


def test_with_a_single_class_there_is_no_area() -> None:
    found = plain(by_confidence([1, 1, 1]))
    assert np.isnan(found.overall["roc_auc"][0])
    assert np.isnan(found.overall["specificity"][0])
    assert found.overall["accuracy"][0] == found.overall["average_precision"][0] == 1


def test_a_class_that_is_never_answered_has_no_precision() -> None:
    predictions = LabelledPredictions(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]), np.array([0, 1]))
    found = plain(predictions)
    assert found.per_class["precision"][:, 0].tolist() == [0.5, 0.0]
    assert found.per_class["f1"][1, 0] == 0


def test_the_winner_need_not_be_the_most_probable() -> None:
    """Predicted classes can differ from the most probable ones, as for ties of hard votes."""
    predictions = LabelledPredictions(np.array([[0.5, 0.5]]), np.array([1]), np.array([1]))
    assert value(predictions, "accuracy") == 1
    assert predictions.confidence.tolist() == [0.5]
