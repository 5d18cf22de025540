"""Join members and vote into one graph, with uncertainty, prediction set and review flag.

Its input is PIXELS, uint8 [batch, height, width, 3]; its outputs are those of the vote in `plurum.predictions.outputs`,
with INDEX, int32 [batch, 1], instead of LABEL.

The vote is `plurum.voting.decide` in float32. It is joined to the members' published graphs, so the fused graph
contains the graphs that were checked. INT8 and FP16 members keep their precision; the vote computes in FP32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from plurum.export.graphs.member import onnx_from_module
from plurum.export.graphs.runtimes import batches_of, onnx_session, openvino_runner
from plurum.export.settings import Backend
from plurum.predictions.arrays import Ints
from plurum.predictions.outputs import VOTED
from plurum.spec import INPUT_PIXELS, LOGITS
from plurum.voting import MODES, DecisionPoint, Verdict, VotingRule

__all__ = ["FUSED_OUTPUTS", "VoteModel", "fused_from_onnx", "verdict_from_fused"]

# A graph names the decided class by its index, because TensorRT has no strings.
FUSED_OUTPUTS = tuple("INDEX" if name == "LABEL" else name for name in VOTED)
# The smallest normal float32: log of it is finite.
_TINY = float(np.finfo(np.float32).tiny)
_LEAST_PROBABILITY = 1e-6
# Tolerance for float32 rounding: a vote share that equals a fitted limit must still reach it.
_ROUNDING = 1e-6
# Types of a verdict's arrays by data type of the output; labels are indices.
_VERDICT_TYPES = {"FP32": np.float64, "BYTES": np.int64, "BOOL": np.bool_}


class VoteModel(nn.Module):
    """`plurum.voting.decide` as a module: float32 logits `[batch, members, classes]` → the outputs.

    A logit of ±infinity becomes NaN, which the next step in Triton refuses; the voter treats it as ±1e30.
    """

    def __init__(self, rule: VotingRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the vote, in the order of `FUSED_OUTPUTS`."""
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
        review = _needs_review(probabilities, winner, inside, self.rule)
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
            "REVIEW": review,
        }
        return tuple(outputs[name] for name in FUSED_OUTPUTS)


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


def _needs_review(probabilities: Tensor, winner: Tensor, inside: Tensor, rule: VotingRule) -> Tensor:
    """Return the review flags, `[batch, 1]`, true for NaN; see `plurum.voting.decide`."""
    point = rule.point
    if point is not None and point.positive is not None:
        positive = probabilities[:, point.positive : point.positive + 1]
        # An empty interval: only NaN is within it.
        low, high = point.review_interval or (0.0, -1.0)
        return ~((positive < low - _ROUNDING) | (positive > high + _ROUNDING))
    if point is not None and point.review_cost is not None:
        least = _expected_costs(probabilities, point).amin(dim=-1, keepdim=True)
        return ~(least <= point.review_cost * (1 + _ROUNDING))
    confidence = (probabilities * winner).sum(dim=-1, keepdim=True)
    sure = confidence >= rule.review_threshold - _ROUNDING
    return ~sure | (inside.to(torch.int32).sum(dim=-1, keepdim=True) > 1)


def _expected_costs(probabilities: Tensor, point: DecisionPoint) -> Tensor:
    return probabilities @ _tensor(point.costs or ())


def fused_from_onnx(graphs: Sequence[Path], rule: VotingRule, classes: int, path: Path) -> None:
    """Write the members' `graphs`, PIXELS → LOGITS each, and their vote to `path` as one graph.

    Args:
        graphs: ONNX files of the members, in the rule's order.
        rule: Voting rule.
        classes: Number of classes.
        path: File for the fused graph.

    Raises:
        onnx.checker.ValidationError: the fused graph is not valid ONNX.
    """
    with tempfile.TemporaryDirectory() as folder:
        vote_path = Path(folder) / "vote.onnx"
        sample = torch.zeros(2, len(graphs), classes)
        onnx_from_module(VoteModel(rule), sample, vote_path, (LOGITS,), FUSED_OUTPUTS)
        vote = onnx.compose.add_prefix(onnx.load(vote_path), "vote/", rename_outputs=False)
    members = [
        onnx.compose.add_prefix(onnx.load(graph), f"{index}/", rename_inputs=False)
        for index, graph in enumerate(graphs)
    ]
    nodes: list[Any] = []
    stacked = []
    for index, member in enumerate(members):
        nodes.extend(member.graph.node)
        stacked.append(f"stacked/{index}")
        nodes.append(helper.make_node("Unsqueeze", [f"{index}/{LOGITS}", "stacked/axis"], [stacked[-1]]))
    nodes.append(helper.make_node("Concat", stacked, [f"vote/{LOGITS}"], axis=1))
    axis = helper.make_tensor("stacked/axis", TensorProto.INT64, [1], [1])
    parts = [*members, vote]
    graph = helper.make_graph(
        [*nodes, *vote.graph.node],
        "ensemble_fused",
        list(members[0].graph.input),
        list(vote.graph.output),
        [axis, *(tensor for part in parts for tensor in part.graph.initializer)],
    )
    opsets = {one.domain: one for part in parts for one in part.opset_import}
    model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=vote.ir_version)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


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
    if backend == "openvino":
        infer = openvino_runner(path, FUSED_OUTPUTS)
    else:
        session = onnx_session(path)

        def infer(batch: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
            return list(session.run(list(FUSED_OUTPUTS), {INPUT_PIXELS: batch}))

    batches = [infer(batch) for batch in batches_of(pixels, rows)]
    parts = [np.concatenate(outputs) for outputs in zip(*batches, strict=True)]
    values: dict[str, Any] = {
        output.field: (part[:, 0] if output.is_scalar else part).astype(_VERDICT_TYPES[output.datatype])
        for output, part in zip(VOTED.values(), parts, strict=True)
    }
    return Verdict(**values)


def _tensor(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis, which is kept with size 1."""
    return -(probabilities * probabilities.clamp(min=_TINY).log()).sum(dim=-1, keepdim=True).clamp(max=0.0)
