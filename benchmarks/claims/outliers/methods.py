"""Methods of outlier detection by a member's features and logits, for comparison with the one that Plurum has.

Legend: features are `[images, features]`, logits `[images, classes]`, scores `[images]`, all float64; a higher score is
less like the training images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from plurum.predictions.arrays import Floats, Ints
from plurum.training.fitting.detection import fit_detector

__all__ = ["METHODS", "OURS", "KnownImages", "MemberOutputs", "Scorer"]

# The test of `plurum fit`, without the conformal p-value, which keeps the order.
OURS = "OUTLIER"
_NEIGHBOURS, _CORESET = 10, 0.5
_PRINCIPAL = 64


@dataclass(frozen=True)
class MemberOutputs:
    """Features and logits of some images."""

    features: Floats
    logits: Floats


@dataclass(frozen=True)
class KnownImages:
    """Training images of a member.

    Attributes:
        outputs: Features and logits.
        labels: Classes, `[images]`.
        weight: Weights of the classifying layer, `[classes, features]`.
        bias: Biases of that layer, `[classes]`.
    """

    outputs: MemberOutputs
    labels: Ints
    weight: Floats
    bias: Floats


Scorer = Callable[[MemberOutputs], Floats]


def _low_rank(known: KnownImages) -> Scorer:
    return _detector(known.outputs.features, known.labels)


def _relative_low_rank(known: KnownImages) -> Scorer:
    by_class = _low_rank(known)
    alone = _detector(known.outputs.features, np.zeros(len(known.labels), dtype=np.int64))
    return lambda outputs: by_class(outputs) - alone(outputs)


def _detector(features: Floats, labels: Ints) -> Scorer:
    """Return the distance of Plurum's detector, not standardised."""
    known = torch.from_numpy(features).float()
    detector = fit_detector(known, torch.from_numpy(labels), known[:1])

    def score(outputs: MemberOutputs) -> Floats:
        with torch.inference_mode():
            novelty = detector(torch.from_numpy(outputs.features).float())[:, 0]
        return np.asarray(novelty.double().numpy() * float(detector.scale) + float(detector.shift))

    return score


def _mahalanobis(known: KnownImages) -> Scorer:
    """Lee et al., arXiv 1807.03888, on the last features."""
    features = known.outputs.features
    means = np.stack([features[known.labels == one].mean(axis=0) for one in np.unique(known.labels)])
    within = _whitening(features - means[np.searchsorted(np.unique(known.labels), known.labels)])
    return lambda outputs: np.min([_lengths((outputs.features - mean) @ within) for mean in means], axis=0)


def _relative_mahalanobis(known: KnownImages) -> Scorer:
    """Ren et al., arXiv 2106.09022."""
    by_class, centre = _mahalanobis(known), known.outputs.features.mean(axis=0)
    whole = _whitening(known.outputs.features - centre)
    return lambda outputs: by_class(outputs) - _lengths((outputs.features - centre) @ whole)


def _vim(known: KnownImages) -> Scorer:
    """Wang et al., arXiv 2203.10807."""
    origin = -np.linalg.pinv(known.weight) @ known.bias
    centred = known.outputs.features - origin
    others = np.linalg.eigh(centred.T @ centred)[1][:, :-_PRINCIPAL]
    scale = known.outputs.logits.max(axis=1).mean() / np.sqrt(_lengths(centred @ others)).mean()
    energy = _energy(known)
    return lambda outputs: scale * np.sqrt(_lengths((outputs.features - origin) @ others)) + energy(outputs)


def _nearest(known: KnownImages) -> Scorer:
    """Sun et al., arXiv 2204.06507, with half of the training images."""
    features = _normalised(known.outputs.features)
    rows = np.random.default_rng(0).permutation(len(features))[: int(_CORESET * len(features))]

    def score(outputs: MemberOutputs) -> Floats:
        # Of unit vectors: the squared distance is 2 - 2 cos.
        near = np.partition(2 - 2 * _normalised(outputs.features) @ features[rows].T, _NEIGHBOURS - 1, axis=1)
        return np.sqrt(np.maximum(near[:, _NEIGHBOURS - 1], 0))

    return score


def _energy(_: KnownImages) -> Scorer:
    """Liu et al., arXiv 2010.03759."""
    return lambda outputs: np.asarray(-torch.from_numpy(outputs.logits).logsumexp(dim=1).numpy())


def _whitening(centred: Floats) -> Floats:
    """Return a matrix that whitens, of a covariance that is shrunk as by Ledoit and Wolf (2004)."""
    images, width = centred.shape
    covariance = centred.T @ centred / images
    mean = np.trace(covariance) / width
    apart = ((covariance - mean * np.eye(width)) ** 2).sum()
    noise = ((_lengths(centred) ** 2).mean() - (covariance**2).sum()) / images
    share = min(max(noise / apart, 0.0), 1.0)
    values, vectors = np.linalg.eigh((1 - share) * covariance + share * mean * np.eye(width))
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-12 * mean)))


def _lengths(vectors: Floats) -> Floats:
    """Return squared lengths."""
    return np.asarray((vectors**2).sum(axis=1))


def _normalised(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.sqrt(_lengths(vectors))[:, None])


METHODS: dict[str, Callable[[KnownImages], Scorer]] = {
    OURS: _low_rank,
    "Mahalanobis, full": _mahalanobis,
    "relative Mahalanobis, low rank": _relative_low_rank,
    "relative Mahalanobis, full": _relative_mahalanobis,
    "ViM": _vim,
    "nearest neighbours": _nearest,
    "energy": _energy,
}
