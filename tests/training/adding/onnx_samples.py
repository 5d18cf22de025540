"""ONNX files as a colleague might send them, and what they predict, computed by PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from plurum.settings.members import AddSettings
from tests.sample_runs.fitted_run import CLASSES

__all__ = ["MEAN", "SIZE", "STD", "expected_probabilities", "prepared_images", "settings", "write_graph"]

MEAN, STD, SIZE = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 48
_GENERATOR = np.random.default_rng(3)
_FILTERS = (_GENERATOR.normal(size=(6, 3, 5, 5)) / 5).astype(np.float32)
_HEAD = (_GENERATOR.normal(size=(6 * 11 * 11, 10)) / 8).astype(np.float32)
_BIAS = _GENERATOR.normal(size=10).astype(np.float32)


def settings(**changes: Any) -> AddSettings:
    """Return settings for these files."""
    return AddSettings.model_validate({"classes": CLASSES, "mean": MEAN, "std": STD, "outputs": "logits"} | changes)


def prepared_images(pixels: npt.NDArray[np.uint8], size: int = SIZE) -> torch.Tensor:
    """Return resized and normalised images, float32 `[images, 3, size, size]`."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True) / 255
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def expected_probabilities(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the probabilities of the classes in the order of the file's outputs, `[images, 10]`."""
    found = functional.conv2d(prepared_images(pixels), torch.from_numpy(_FILTERS), stride=4).relu().flatten(1)
    logits = found @ torch.from_numpy(_HEAD) + torch.from_numpy(_BIAS)
    return np.asarray(logits.softmax(dim=1).double().numpy())


def write_graph(
    path: Path,
    *,
    layout: str = "NCHW",
    batch: int | str = "batch",
    half: bool = False,
    softmax: bool = False,
    opset: int = 17,
    size: int | str = SIZE,
) -> onnx.ModelProto:
    """Write the graph to `path`, and return it."""
    kind, dtype = (TensorProto.FLOAT16, "float16") if half else (TensorProto.FLOAT, "float32")
    shape = [batch, 3, size, size] if layout == "NCHW" else [batch, size, size, 3]
    fixed = batch if isinstance(batch, int) else -1
    nodes = [] if layout == "NCHW" else [helper.make_node("Transpose", ["picture"], ["nchw"], perm=[0, 3, 1, 2])]
    first = "picture" if layout == "NCHW" else "nchw"
    nodes += [
        helper.make_node("Conv", [first, "filters"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Reshape", ["relu", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
    weights: dict[str, npt.NDArray[Any]] = {"filters": _FILTERS, "head": _HEAD, "bias": _BIAS}
    graph = helper.make_graph(
        nodes,
        "colleague",
        [helper.make_tensor_value_info("picture", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], kind, [batch, 10])],
        [
            *(numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([fixed, _HEAD.shape[0]], dtype=np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return model
