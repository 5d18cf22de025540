"""Export a member to an ONNX graph.

    PIXELS  uint8 [batch, height, width, 3]  →  LOGITS  float32 [batch, classes]
                                                NOVELTY  float32 [batch, 1], if the member has a detector

The graph includes normalisation: clients send a quarter of the bytes and can't normalise wrongly.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from plurum.detectors import FeatureModel
from plurum.models import normalise
from plurum.onnx_graphs.export import onnx_from_module
from plurum.onnx_graphs.member_graphs import FEATURES, IMAGES
from plurum.onnx_graphs.module import OnnxModel
from plurum.spec import INPUT_PIXELS, LOGITS, NOVELTY, ImageSpec

__all__ = ["PixelModel", "detector_nodes", "onnx_from_model", "resizing_nodes"]


class PixelModel(nn.Module):
    """Member with normalisation: uint8 pixels `[batch, height, width, 3]` → float32 logits `[batch, classes]`.

    With a detector, it also returns the novelty, float32 `[batch, 1]`.

    Args:
        model: Classifier, images → logits; with a detector images → logits and features.
        image: Image spec of the member.
        detector: Detector of outliers, features `[batch, features]` → novelty `[batch, 1]`; None without one.
        decoded: Image spec by which images are decoded, if that differs from the member's; the graph resizes them.
    """

    def __init__(
        self, model: nn.Module, image: ImageSpec, detector: nn.Module | None = None, decoded: ImageSpec | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.image = image
        self.decoded = decoded or image
        self.detector = detector

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return (LOGITS,) if self.detector is None else (LOGITS, NOVELTY)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise `pixels` and return logits, with the novelty if there is a detector."""
        images = normalise(pixels, self.image)
        if self.detector is None:
            only: Tensor = self.model(images)
            return only
        logits, features = self.model(images)
        return logits, self.detector(features)


def detector_nodes(graph: Any) -> list[Any]:
    """Return the nodes of a member's graph that compute only NOVELTY, not LOGITS; none without a detector."""
    makers = {name: node for node in graph.node for name in node.output}

    def reach(output: str) -> dict[int, Any]:
        found: dict[int, Any] = {}
        waiting = [output]
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                waiting.extend(node.input)
        return found

    classifying = reach(LOGITS)
    return [node for key, node in reach(NOVELTY).items() if key not in classifying]


def resizing_nodes(graph: Any) -> list[Any]:
    """Return the matrix products of a member's graph that resize PIXELS; none if the member has the decoded size."""
    reached, found = {INPUT_PIXELS}, []
    for node in graph.node:
        if node.op_type in {"Cast", "Transpose", "MatMul"} and reached & set(node.input):
            reached |= set(node.output)
            found += [node] if node.op_type == "MatMul" else []
    return found


def onnx_from_model(model: PixelModel, path: Path) -> None:
    """Write `model` to `path` as one ONNX file of opset 20 with a dynamic batch dimension, and validate it.

    A member that is an ONNX graph keeps its operators, between those of normalisation and of the detector.

    Raises:
        onnx.checker.ValidationError: the exported graph is not valid ONNX.
    """
    inner = model.model.model if isinstance(model.model, FeatureModel) else model.model
    if isinstance(inner, OnnxModel):
        _join_graphs(model, inner, path)
        return
    # A batch of 2, because the exporter would treat a batch of 1 as a constant.
    sample = torch.zeros(2, model.decoded.height, model.decoded.width, 3, dtype=torch.uint8)
    onnx_from_module(model, (sample,), path, (INPUT_PIXELS,), model.outputs)


class _Normaliser(nn.Module):
    """Normalisation alone: uint8 pixels → images of a member."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.image = image

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalised images."""
        return normalise(pixels, self.image)


def _join_graphs(model: PixelModel, inner: OnnxModel, path: Path) -> None:
    """Write normalisation, the member's own graph and its detector to `path` as one graph."""
    sample = torch.zeros(2, model.decoded.height, model.decoded.width, 3, dtype=torch.uint8)
    pixels = onnx.compose.add_prefix(_graph_of(_Normaliser(model.image), sample, INPUT_PIXELS, IMAGES), "pixels/")
    member = onnx.compose.add_prefix(onnx.load_model_from_string(inner.graph), "member/")
    member.ir_version = pixels.ir_version
    joined = onnx.compose.merge_models(pixels, member, io_map=[(f"pixels/{IMAGES}", f"member/{IMAGES}")])
    names = {f"pixels/{INPUT_PIXELS}": INPUT_PIXELS, f"member/{LOGITS}": LOGITS}
    if model.detector is not None:
        width = next(iter(model.detector.buffers())).shape[0]
        detector = _graph_of(model.detector, torch.zeros(2, width), FEATURES, NOVELTY)
        detector = onnx.compose.add_prefix(detector, "detector/")
        io_map = [(f"member/{FEATURES}", f"detector/{FEATURES}")]
        outputs = [f"member/{LOGITS}", f"detector/{NOVELTY}"]
        joined = onnx.compose.merge_models(joined, detector, io_map=io_map, outputs=outputs)
        names[f"detector/{NOVELTY}"] = NOVELTY
    del joined.graph.output[len(model.outputs) :]
    # Merging repeats the opset, which converters then don't find.
    del joined.opset_import[1:]
    _rename(joined.graph, names)
    onnx.save(joined, path)
    onnx.checker.check_model(path, full_check=True)


def _graph_of(module: nn.Module, sample: Tensor, given: str, found: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        onnx_from_module(module, (sample,), Path(folder) / "part.onnx", (given,), (found,))
        return onnx.load(Path(folder) / "part.onnx")


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename tensors of a graph."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                tensors[index] = names.get(name, name)
