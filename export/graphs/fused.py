"""Join members and vote into one graph, with uncertainty, prediction set and review flag.

Its input is PIXELS, uint8 [batch, height, width, 3]; its outputs are those of the vote in `plurum.predictions.outputs`,
with INDEX, int32 [batch, 1], instead of LABEL; with an outlier test also OUTLIER and REVIEW_REASON.

The vote is `plurum.voting.decide` in float32. It is joined to the members' published graphs, so the fused graph
contains the graphs that were checked. INT8 and FP16 members keep their precision; the vote computes in FP32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from plurum.export.graphs.joining import join_graphs
from plurum.export.graphs.runtimes import batches_of, onnx_session, openvino_runner
from plurum.export.settings import Backend
from plurum.predictions.arrays import Ints
from plurum.predictions.outputs import graph_outputs, voted_outputs
from plurum.spec import INPUT_PIXELS
from plurum.voting import (
    MODES,
    REVIEW_CONFIDENCE,
    REVIEW_OUTLIER,
    REVIEW_SET,
    DecisionPoint,
    OutlierTest,
    Verdict,
    VotingRule,
)

__all__ = ["VoteModel", "fused_from_onnx", "verdict_from_fused", "verdict_from_outputs"]

# The smallest normal float32: log of it is finite.
_TINY = float(np.finfo(np.float32).tiny)
_LEAST_PROBABILITY = 1e-6
# Tolerance for float32 rounding: a vote share that equals a fitted limit must still reach it.
_ROUNDING = 1e-6
# Types of a verdict's arrays by data type of the output; labels are indices.
_VERDICT_TYPES = {"FP32": np.float64, "BYTES": np.int64, "BOOL": np.bool_, "UINT8": np.uint8}


class VoteModel(nn.Module):
    """`plurum.voting.decide` as a module: float32 logits `[batch, members, classes]` → the outputs.

    A logit of ±infinity becomes NaN, which the next step in Triton refuses; the voter treats it as ±1e30.
    """

    def __init__(self, rule: VotingRule) -> None:
        super().__init__()
        self.rule = rule

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return graph_outputs(has_outliers=self.rule.outliers is not None)

    def forward(self, logits: Tensor, novelty: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of the vote, in the order of `outputs`; arguments as in `vote`."""
        found = self.vote(logits, novelty)
        return tuple(found[name] for name in self.outputs)

    def vote(self, logits: Tensor, novelty: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs of the vote by name.

        Args:
            logits: Logits of the members, float32 `[batch, members, classes]`.
            novelty: Novelty of the members with a detector, float32 `[batch, detectors]`; None without a test.
        """
        members = logits.softmax(dim=-1)
        weights = _tensor(self.rule.weights).view(1, -1, 1)
        mean = (members * weights).sum(dim=1)
        probabilities = _VOTES[self.rule.mode](members, mean, self.rule)
        if MODES[self.rule.mode].has_probabilities:
            probabilities = _corrected(probabilities, self.rule)
            index = _decided(probabilities, self.rule.point)
        else:
            tied = probabilities >= probabilities.max(dim=-1, keepdim=True).values - _ROUNDING
            index = torch.where(tied, mean, -1.0).argmax(dim=-1, keepdim=True)
        winner = torch.arange(logits.shape[2]) == index
        inside = winner
        if self.rule.quantiles is not None:
            inside = winner | (1.0 - probabilities <= _tensor(self.rule.quantiles) + _ROUNDING)
            if self.rule.point is None:
                # The tie rule of a hard vote may pick another class than the lower index; the set then holds both.
                inside |= torch.arange(logits.shape[2]) == probabilities.argmax(dim=-1, keepdim=True)
        reasons = _review_reasons(probabilities, winner, inside, self.rule)
        # Sum over members first, then over classes. The other order sums a tensor of [batch, members, 1] over members,
        # which OpenVINO 2026.4 gets wrong from the second image of a batch on.
        expected = -(members * members.clamp(min=_TINY).log() * weights).sum(dim=1).sum(dim=-1, keepdim=True)
        disagreement = _entropy(mean) - expected
        std = ((members - mean.unsqueeze(1)).square() * weights).sum(dim=1).sqrt()
        outputs = {
            "PROBABILITIES": probabilities,
            "INDEX": index.to(torch.int32),
            "ENTROPY": _entropy(probabilities),
            "DISAGREEMENT": disagreement.clamp(min=0.0),
            "STD": std,
            "MEMBER_PROBABILITIES": members,
            "PREDICTION_SET": inside,
        }
        if self.rule.outliers is not None and novelty is not None:
            outputs["OUTLIER"], reasons[REVIEW_OUTLIER] = _test(novelty, self.rule.outliers)
        # Bits of different reasons add up.
        bits = torch.stack([is_one.float() * bit for bit, is_one in reasons.items()], dim=-1)
        outputs["REVIEW_REASON"] = bits.sum(dim=-1).to(torch.uint8)
        outputs["REVIEW"] = reduce(operator.or_, reasons.values())
        return outputs

    def decide_members(self, members: Tensor) -> Tensor:
        """Return the decision of each member, `[batch, members]`, see `plurum.voting.decide_members`.

        Args:
            members: Probabilities of the members, float32 `[batch, members, classes]`.
        """
        if self.rule.point is None:
            return members.argmax(dim=-1)
        return _decided(_corrected(members, self.rule).flatten(0, 1), self.rule.point).reshape(-1, members.shape[1])


def _hard_vote(members: Tensor, _mean: Tensor, rule: VotingRule) -> Tensor:
    votes = torch.arange(members.shape[2]) == members.argmax(dim=-1, keepdim=True)
    return (votes * _tensor(rule.weights).view(1, -1, 1)).sum(dim=1)


def _stacked_vote(members: Tensor, _mean: Tensor, rule: VotingRule) -> Tensor:
    features = members.clamp(min=_LEAST_PROBABILITY).log().flatten(1)
    return (features @ _tensor(rule.coefficients or ()).T + _tensor(rule.intercepts or ())).softmax(dim=-1)


# The votes of `plurum.voting.MODES` in PyTorch.
_VOTES: dict[str, Callable[[Tensor, Tensor, VotingRule], Tensor]] = {
    "soft": lambda _, mean, __: mean,
    "hard": _hard_vote,
    "stack": _stacked_vote,
}


def _corrected(vote: Tensor, rule: VotingRule) -> Tensor:
    """Return probabilities tempered and corrected for class frequencies."""
    if rule.temperature != 1.0:
        vote = (vote.clamp(min=_TINY).log() / rule.temperature).softmax(dim=-1)
    if rule.prior_ratio is not None:
        shared = vote * _tensor(rule.prior_ratio)
        vote = shared / shared.sum(dim=-1, keepdim=True)
    return vote


def _decided(probabilities: Tensor, point: DecisionPoint | None) -> Tensor:
    """Return the index of the decision, `[batch, 1]`; see `plurum.voting.decide_at`."""
    if point is None:
        return probabilities.argmax(dim=-1, keepdim=True)
    if point.positive is None or point.threshold is None:
        return _expected_costs(probabilities, point).argmin(dim=-1, keepdim=True)
    is_positive = probabilities[:, point.positive : point.positive + 1] >= point.threshold
    return torch.where(is_positive, point.positive, 1 - point.positive)


def _review_reasons(probabilities: Tensor, winner: Tensor, inside: Tensor, rule: VotingRule) -> dict[int, Tensor]:
    """Return a mask `[batch, 1]`, true for NaN, for each bit of a reason for review; see `plurum.voting.decide`."""
    point = rule.point
    if point is not None and point.positive is not None:
        positive = probabilities[:, point.positive : point.positive + 1]
        # An empty interval: only NaN is within it.
        low, high = point.review_interval or (0.0, -1.0)
        return {REVIEW_CONFIDENCE: ~((positive < low - _ROUNDING) | (positive > high + _ROUNDING))}
    if point is not None and point.review_cost is not None:
        least = _expected_costs(probabilities, point).amin(dim=-1, keepdim=True)
        return {REVIEW_CONFIDENCE: ~(least <= point.review_cost * (1 + _ROUNDING))}
    confidence = (probabilities * winner).sum(dim=-1, keepdim=True)
    sure = confidence >= rule.review_threshold - _ROUNDING
    return {REVIEW_CONFIDENCE: ~sure, REVIEW_SET: inside.to(torch.int32).sum(dim=-1, keepdim=True) > 1}


def _test(novelty: Tensor, outliers: OutlierTest) -> tuple[Tensor, Tensor]:
    """Return the p-value, NaN for NaN, and the mask of outliers, `[batch, 1]` each; see `OutlierTest.test`."""
    weights = [weight for weight, has in zip(outliers.weights, outliers.detecting, strict=True) if has]
    score = novelty @ _tensor(weights).unsqueeze(1)
    # Counted in float32, which is exact up to 16 million images; TensorRT sums no booleans.
    lower = (_tensor(outliers.reference) < score).float().sum(dim=-1, keepdim=True)
    p_value = _tensor(outliers.p_values.tolist())[lower.squeeze(1).long()].unsqueeze(1)
    return torch.where(score.isnan(), torch.nan, p_value), lower >= outliers.first_outlier


def _expected_costs(probabilities: Tensor, point: DecisionPoint) -> Tensor:
    return probabilities @ _tensor(point.costs or ())


def fused_from_onnx(graphs: Sequence[Path], rule: VotingRule, classes: int, path: Path) -> None:
    """Write the members' `graphs`, PIXELS → LOGITS (and NOVELTY) each, and their vote to `path` as one graph.

    Args:
        graphs: ONNX files of the members, in the rule's order.
        rule: Voting rule.
        classes: Number of classes.
        path: File for the fused graph.

    Raises:
        onnx.checker.ValidationError: the fused graph is not valid ONNX.
    """
    join_graphs(graphs, rule.outliers.detecting if rule.outliers else (), VoteModel(rule), classes, path)


def verdict_from_fused(
    path: Path, pixels: npt.NDArray[np.uint8], backend: Backend = "onnxruntime", rows: Ints | None = None
) -> Verdict:
    """Return the verdict of the fused graph at `path` on `pixels`.

    Args:
        path: ONNX file of the graph.
        pixels: Images, uint8 `[images, height, width, 3]`.
        backend: Backend that runs the graph; ONNX Runtime stands in for TensorRT.
        rows: Indices of the images to run, `[rows]`; None runs all.
    """
    has_outliers = "OUTLIER" in {one.name for one in onnx.load(path).graph.output}
    outputs = graph_outputs(has_outliers=has_outliers)
    if backend == "openvino":
        infer = openvino_runner(path, outputs)
    else:
        session = onnx_session(path)

        def infer(batch: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
            return list(session.run(list(outputs), {INPUT_PIXELS: batch}))

    batches = [infer(batch) for batch in batches_of(pixels, rows)]
    parts = [np.concatenate(found) for found in zip(*batches, strict=True)]
    return verdict_from_outputs(dict(zip(outputs, parts, strict=True)))


def verdict_from_outputs(outputs: Mapping[str, npt.NDArray[Any]]) -> Verdict:
    """Return the verdict that a graph states in its outputs, by name; other tensors are ignored."""
    values: dict[str, Any] = {}
    for name, output in voted_outputs(has_outliers="OUTLIER" in outputs).items():
        part = outputs["INDEX" if name == "LABEL" else name]
        values[output.field] = (part[:, 0] if output.is_scalar else part).astype(_VERDICT_TYPES[output.datatype])
    untested = {"outlier": np.ones(len(values["label"])), "review_reason": values["review"].astype(np.uint8)}
    return Verdict(**(untested | values))


def _tensor(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis, which is kept with size 1."""
    return -(probabilities * probabilities.clamp(min=_TINY).log()).sum(dim=-1, keepdim=True).clamp(max=0.0)
