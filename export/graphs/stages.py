"""Graphs of a cascade: each stage adds members to those of the stage before, and votes.

    PIXELS           uint8 [batch, height, width, 3]
    LOGITS_BEFORE    float32 [batch, members before, classes], from the second stage on
    NOVELTY_BEFORE   float32 [batch, detectors before], if members of a stage before have a detector
  → the outputs of the fused graph, with MEMBERS_USED; but for the last stage also:
    LEAVE            bool [batch, 1], true for each image that the stage settles
    LOGITS, NOVELTY  LOGITS_BEFORE and NOVELTY_BEFORE of the next stage

Probabilities of members that have not run are 0. `plurum.voting.decide_cascade` is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plurum.export.graphs.fused import VoteModel, verdict_from_outputs
from plurum.export.graphs.joining import join_graphs
from plurum.export.graphs.runtimes import batches_of, onnx_stage, openvino_stage
from plurum.export.settings import Backend
from plurum.predictions.arrays import Ints
from plurum.predictions.outputs import BEFORE, LEAVE, USED, graph_outputs
from plurum.spec import INPUT_PIXELS
from plurum.voting import Cascade, CascadeStage, CascadeVerdict, VotingRule

__all__ = ["outputs_of_stages", "stages_from_onnx", "verdict_from_stages", "whole_from_onnx"]


class _EarlyVote(nn.Module):
    """Vote of a stage at which images may leave; logits and novelty are in the order in which members run.

    Args:
        stage: Stage of the cascade.
        members: Number of members of the ensemble.
        has_outliers: True if the ensemble tests for outliers.
    """

    def __init__(self, stage: CascadeStage, members: int, *, has_outliers: bool) -> None:
        super().__init__()
        self.stage, self.members = stage, members
        self.vote = VoteModel(stage.rule)
        self.outputs = (*graph_outputs(has_outliers=has_outliers, has_cascade=True), LEAVE)

    def forward(self, logits: Tensor, novelty: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of `outputs`.

        Args:
            logits: Logits of the members that have run, float32 `[batch, members, classes]`.
            novelty: Novelty of those that have a detector, float32 `[batch, detectors]`; None without a test.
        """
        found = self.vote.vote(logits, novelty)
        seen, index = found["MEMBER_PROBABILITIES"], found["INDEX"].long()
        confidence = found["PROBABILITIES"].gather(1, index)
        leaves = ~found["REVIEW"] & (confidence >= self.stage.leave)
        if len(self.stage.members) > 1:
            leaves &= (self.vote.decide_members(seen) == index).all(dim=-1, keepdim=True)
        others = [one for one in range(self.members) if one not in self.stage.members]
        unseen = torch.zeros_like(seen[:, :1]).expand(-1, len(others), -1)
        places = torch.tensor([*self.stage.members, *others]).argsort()
        found["MEMBER_PROBABILITIES"] = torch.cat([seen, unseen], dim=1).index_select(1, places)
        found[USED] = _used(logits, [one in self.stage.members for one in range(self.members)])
        # Without a detector in this stage, the test of the whole vote has nothing to say yet.
        found.setdefault("OUTLIER", torch.ones_like(found["ENTROPY"]))
        found[LEAVE] = leaves
        return tuple(found[name] for name in self.outputs)


class _WholeVote(nn.Module):
    """Vote of all members of a cascade.

    Args:
        rule: Voting rule, in the order of the ensemble.
        order: Indices of the members, in the order of the logits.
    """

    def __init__(self, rule: VotingRule, order: Sequence[int]) -> None:
        super().__init__()
        self.vote = VoteModel(rule)
        detecting = rule.outliers.detecting if rule.outliers else ()
        self.places = torch.tensor(order).argsort()
        self.detectors = torch.tensor([one for one in order if detecting and detecting[one]]).argsort()
        self.outputs = graph_outputs(has_outliers=rule.outliers is not None, has_cascade=True)

    def forward(self, logits: Tensor, novelty: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of `outputs`; arguments as in `_EarlyVote`."""
        known = None if novelty is None else novelty.index_select(1, self.detectors)
        found = self.vote.vote(logits.index_select(1, self.places), known)
        found[USED] = _used(logits, [True] * len(self.places))
        return tuple(found[name] for name in self.outputs)


def whole_from_onnx(graphs: Sequence[Path], rule: VotingRule, classes: int, path: Path) -> None:
    """Write the graph that runs all members of a cascade's ensemble; arguments as in `fused_from_onnx`."""
    detecting = rule.outliers.detecting if rule.outliers else ()
    join_graphs(graphs, detecting, _WholeVote(rule, range(len(graphs))), classes, path)


def stages_from_onnx(graphs: Sequence[Path], cascade: Cascade, classes: int, paths: Sequence[Path]) -> None:
    """Write a graph per stage, the whole vote last.

    Args:
        graphs: ONNX files of the members, in the order of the ensemble.
        cascade: The cascade.
        classes: Number of classes.
        paths: Files for the graphs, one per stage.

    Raises:
        onnx.checker.ValidationError: a graph is not valid ONNX.
    """
    test = cascade.rule.outliers
    detecting = test.detecting if test else (False,) * len(graphs)
    ran = [stage.members for stage in cascade.stages]
    # The last members run together, in any order.
    ran.append((*ran[-1], *(one for one in range(len(graphs)) if one not in ran[-1])))
    early = [_EarlyVote(stage, len(graphs), has_outliers=test is not None) for stage in cascade.stages]
    before: tuple[int, ...] = ()
    for tail, path, after in zip([*early, _WholeVote(cascade.rule, ran[-1])], paths, ran, strict=True):
        join_graphs(
            [graphs[one] for one in after[len(before) :]],
            [detecting[one] for one in after[len(before) :]],
            tail,
            classes,
            path,
            before=(len(before), sum(detecting[one] for one in before)),
            is_last=after is ran[-1],
        )
        before = after


def outputs_of_stages(
    paths: Sequence[Path], pixels: npt.NDArray[np.uint8], backend: Backend = "onnxruntime", rows: Ints | None = None
) -> list[dict[str, npt.NDArray[Any]]]:
    """Return all outputs of each stage by name, for all images: those that an earlier stage settles go on here.

    Args:
        paths: Graphs of the stages.
        pixels: Images, uint8 `[images, height, width, 3]`.
        backend: Backend that runs the graphs.
        rows: Indices of the images to run, `[rows]`; None runs all.
    """
    run = [openvino_stage(path) if backend == "openvino" else onnx_stage(path) for path in paths]
    found: list[list[dict[str, npt.NDArray[Any]]]] = [[] for _ in paths]
    for batch in batches_of(pixels, rows):
        tensors = {INPUT_PIXELS: batch}
        for stage, parts in zip(run, found, strict=True):
            parts.append(stage(tensors))
            tensors = {INPUT_PIXELS: batch} | {f"{name}{BEFORE}": array for name, array in parts[-1].items()}
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found]


def verdict_from_stages(outputs: Sequence[Mapping[str, npt.NDArray[Any]]]) -> CascadeVerdict:
    """Return the verdict of a cascade on images, from what `outputs_of_stages` returns for them."""
    taken = dict(outputs[-1])
    stage_of = np.full(len(taken[USED]), len(outputs) - 1)
    # The first stage last, as an image leaves at the first that settles it.
    for index, found in reversed(list(enumerate(outputs[:-1]))):
        leaves = found[LEAVE][:, 0]
        stage_of[leaves] = index
        taken = {
            name: np.where(leaves.reshape(-1, *(1,) * (array.ndim - 1)), found[name], array)
            for name, array in taken.items()
        }
    return CascadeVerdict(verdict_from_outputs(taken), taken[USED], stage_of)


def _used(logits: Tensor, used: Sequence[bool]) -> Tensor:
    """Return MEMBERS_USED, bool `[batch, members]`, for logits of a batch."""
    return torch.tensor(used).unsqueeze(0).expand(logits.shape[0], -1)
