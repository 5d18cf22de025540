"""Join the graphs of members and a module that takes their logits, such as a vote, into one graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from plurum.onnx_graphs.export import onnx_from_module
from plurum.predictions.outputs import BEFORE
from plurum.spec import LOGITS, NOVELTY

__all__ = ["join_graphs"]


def join_graphs(
    graphs: Sequence[Path],
    detecting: Sequence[bool],
    tail: Any,
    classes: int,
    path: Path,
    *,
    before: tuple[int, int] = (0, 0),
    is_last: bool = True,
) -> None:
    """Write the members' `graphs`, PIXELS → LOGITS (and NOVELTY) each, and `tail` to `path` as one graph.

    Args:
        graphs: ONNX files of the members, in the order of the tail's logits.
        detecting: True for each of them that has a detector; may be empty if none has.
        tail: Module of the logits `[batch, members, classes]` and, if there are detectors, of the novelty
            `[batch, detectors]`; its attribute `outputs` names what it returns.
        classes: Number of classes.
        path: File for the graph.
        before: Numbers of members, and of detectors, whose LOGITS_BEFORE `[batch, members, classes]` and NOVELTY_BEFORE
            `[batch, detectors]` are inputs, and come first in the tail's.
        is_last: If False, the graph also returns what the tail takes, as LOGITS and NOVELTY.

    Raises:
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    own = [index for index, has in enumerate(detecting) if has]
    shapes: dict[str, tuple[int, ...]] = {LOGITS: (before[0] + len(graphs), classes)}
    if before[1] + len(own):
        shapes[NOVELTY] = (before[1] + len(own),)
    vote = _graph_of(tail, shapes)
    members = [
        onnx.compose.add_prefix(onnx.load(graph), f"{index}/", rename_inputs=False)
        for index, graph in enumerate(graphs)
    ]
    inputs, outputs = list(members[0].graph.input), list(vote.graph.output)
    nodes: list[Any] = []
    parts: dict[str, list[str]] = {LOGITS: [], NOVELTY: [f"{index}/{NOVELTY}" for index in own]}
    for index, member in enumerate(members):
        nodes.extend(member.graph.node)
        parts[LOGITS].append(f"stacked/{index}")
        nodes.append(helper.make_node("Unsqueeze", [f"{index}/{LOGITS}", "stacked/axis"], [parts[LOGITS][-1]]))
    for (name, shape), earlier in zip(shapes.items(), before, strict=False):
        if earlier:
            inputs.append(_float_info(f"{name}{BEFORE}", (earlier, *shape[1:])))
            parts[name].insert(0, f"{name}{BEFORE}")
        nodes.append(helper.make_node("Concat", parts[name], [f"vote/{name}"], axis=1))
        if not is_last:
            nodes.append(helper.make_node("Identity", [f"vote/{name}"], [name]))
            outputs.append(_float_info(name, shape))
    _save([*members, vote], nodes, inputs, outputs, path)


def _graph_of(tail: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the ONNX model of a tail whose inputs have these shapes without the batch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tail.onnx"
        samples = tuple(torch.zeros(2, *shape) for shape in shapes.values())
        onnx_from_module(tail, samples, path, tuple(shapes), tail.outputs)
        return onnx.compose.add_prefix(onnx.load(path), "vote/", rename_outputs=False)


def _save(parts: Sequence[Any], nodes: Sequence[Any], inputs: list[Any], outputs: list[Any], path: Path) -> None:
    """Write `nodes`, then those of the last of `parts`, with the constants of all parts, as a checked graph."""
    axis = helper.make_tensor("stacked/axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        [*nodes, *parts[-1].graph.node],
        "ensemble_fused",
        inputs,
        outputs,
        [axis, *(tensor for part in parts for tensor in part.graph.initializer)],
    )
    opsets = {one.domain: one for part in parts for one in part.opset_import}
    model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=parts[-1].ir_version)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def _float_info(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
