"""Graphs of members from elsewhere, compared with the original before they are stored.

Legend: images are normalised pixels, float32 `[images, 3, height, width]`; probabilities are `[images, classes]`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from plurum.errors import MetadataError, ParityError, PlurumError
from plurum.onnx_graphs.export import onnx_from_module
from plurum.onnx_graphs.files import read_onnx, tensors_of
from plurum.onnx_graphs.member_graphs import (
    IMAGES,
    WHOLE_NUMBERS,
    GraphSource,
    OutputKind,
    convert_graph,
    input_of,
    output_of,
)
from plurum.onnx_graphs.module import OnnxModel, session_of
from plurum.predictions.arrays import Floats
from plurum.settings.members import AddSettings
from plurum.spec import LOGITS
from plurum.voting import softmax

__all__ = ["MemberGraph", "graph_from_module", "graph_from_onnx", "image_size_of"]

Images = npt.NDArray[np.float32]
# Largest difference of a probability from the original's: rounding of float32, and of FP16 where the original has it.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 2e-2
_SUM_TOLERANCE = 1e-2
_HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


@dataclass(frozen=True)
class MemberGraph:
    """Graph of a member, IMAGES → LOGITS.

    Attributes:
        graph: Serialised ONNX model.
        parameters: Number of weights.
        difference: Largest difference of a probability from the original's, 0 to 1.
    """

    graph: bytes
    parameters: int
    difference: float


def image_size_of(model: Any, settings: AddSettings) -> tuple[int, int]:
    """Return height and width of an ONNX model's input, from the model or from the settings.

    Raises:
        MetadataError: both state a size, and they differ; neither does; or the layout is unclear.
    """
    sizes = [one.dim_value for one in input_of(model, settings.input).type.tensor_type.shape.dim]
    stated = tuple(sizes[1:3] if _layout(model, settings) == "NHWC" else sizes[2:4])
    given = (settings.image_size,) * 2
    if settings.image_size is None:
        if not all(stated):
            raise MetadataError("--image-size: expected a size, as the ONNX file states none, got none")
    elif any(size and size != other for size, other in zip(stated, given, strict=True)):
        raise MetadataError(f"--image-size: expected the ONNX file's {stated[0]} × {stated[1]}, got {given[0]}")
    height, width = stated if settings.image_size is None else (settings.image_size, settings.image_size)
    return height, width


def graph_from_onnx(
    path: Path, settings: AddSettings, size: tuple[int, int], order: tuple[int, ...], images: Images
) -> MemberGraph:
    """Return the graph of an ONNX file, compared with the file's own predictions.

    Args:
        path: ONNX file.
        settings: What the file does not state.
        size: Height and width of the input.
        order: Index of each class of the run among the outputs.
        images: Images to compare predictions on.

    Raises:
        MetadataError: the file can't become a member.
        ParityError: the converted graph differs from the file.
    """
    model = read_onnx(path)
    layout = _layout(model, settings)
    kind = settings.outputs or "logits"
    _check_std(input_of(model, settings.input), settings)
    original = _session(model.SerializeToString(), str(path))
    found = _original_outputs(original, model, settings, np.moveaxis(images, 1, -1) if layout == "NHWC" else images)
    if found.shape[1] != len(order):
        raise MetadataError(
            f"--classes: expected {found.shape[1]}, one for each output of {path}, got {len(order)}. Export the model "
            f"with an output for each class of the run."
        )
    _check_kind(found, kind)
    expected = found if kind == "probabilities" else softmax(found)
    source = GraphSource(settings.input, settings.output, layout, kind, *size, order)
    has_halves = any(one.data_type in _HALVES for one in tensors_of(model))
    return _checked(model, source, expected[:, list(order)], images, _HALF_TOLERANCE if has_halves else _TOLERANCE)


def graph_from_module(
    module: nn.Module, arch: str, kind: OutputKind, order: tuple[int, ...], images: Images
) -> MemberGraph:
    """Return a module's graph, compared with the module's own predictions.

    Args:
        module: Module, images → outputs, in evaluation mode.
        arch: Name of the module, for messages.
        kind: Kind of the outputs.
        order: Index of each class of the run among the outputs.
        images: Images to compare predictions on.

    Raises:
        MetadataError: the module fails, returns other outputs, or can't be exported.
        ParityError: the graph differs from the module.
    """
    with torch.inference_mode():
        logits = _logits(lambda: module(torch.from_numpy(images)).float().numpy(), arch, images.shape)
    if logits.ndim != 2 or logits.shape[1] != len(order):
        raise MetadataError(
            f"--arch: expected {arch} to return logits [{len(images)}, {len(order)}], got {list(logits.shape)}"
        )
    _check_kind(logits, kind)
    expected = logits if kind == "probabilities" else softmax(logits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        try:
            onnx_from_module(module, (torch.from_numpy(images[:2]),), path, (IMAGES,), (LOGITS,))
            model = read_onnx(path)
        except PlurumError:
            raise
        # The exporter can raise anything.
        except Exception as error:
            raise MetadataError(
                f"--arch: {arch} can't be exported to ONNX: {type(error).__name__}: {_first_line(error)}. Make its "
                f"forward free of branches that depend on values, or export it yourself and add the ONNX file."
            ) from error
    source = GraphSource("", "", "NCHW", kind, images.shape[2], images.shape[3], order)
    return _checked(model, source, expected[:, list(order)], images, _TOLERANCE)


def _checked(model: Any, source: GraphSource, expected: Floats, images: Images, tolerance: float) -> MemberGraph:
    """Return the converted graph after comparing its probabilities, for all images at once, with the original's."""
    _check_end(model, source)
    try:
        graph = convert_graph(model, source).SerializeToString()
    except PlurumError:
        raise
    # Of a graph from outside, onnx can raise anything.
    except Exception as error:
        raise MetadataError(f"the graph can't be converted: {_first_line(error)}. Export the model again.") from error
    try:
        found = softmax(OnnxModel(graph)(torch.from_numpy(images)).double().numpy())
    except PlurumError:
        raise
    # ONNX Runtime's errors have no common class.
    except Exception as error:
        raise MetadataError(
            f"the graph can't take {len(images)} images at once: {_first_line(error)}. Export the model with a dynamic "
            f"batch."
        ) from error
    if found.shape != expected.shape:
        raise MetadataError(
            f"the graph can't take {len(images)} images at once: expected predictions {list(expected.shape)}, got "
            f"{list(found.shape)}. Export the model with a dynamic batch."
        )
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise ParityError(
            f"the converted graph differs from the original: probabilities by up to {difference:.2g} (at most "
            f"{tolerance:g}). Export the model with opset 20, float32 weights and a dynamic batch."
        )
    parameters = sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type not in _INTEGERS)
    return MemberGraph(graph, max(1, parameters), difference)


def _check_end(model: Any, source: GraphSource) -> None:
    """Check that the outputs are not those of a sigmoid, which are neither logits nor sum to 1."""
    makers = {output: node for node in model.graph.node for output in node.output}
    node = makers.get(output_of(model, source.output).name)
    while node is not None and node.op_type in {"Cast", "Flatten", "Identity", "Reshape", "Squeeze"}:
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "Sigmoid":
        raise MetadataError(
            f"--outputs: expected {source.kind} of classes that exclude each other, got those of a sigmoid. Export the "
            f"model without it."
        )


_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}


def _layout(model: Any, settings: AddSettings) -> Any:
    sizes = [one.dim_value for one in input_of(model, settings.input).type.tensor_type.shape.dim]
    places = {"NCHW": sizes[1], "NHWC": sizes[3]}
    possible = [layout for layout, channels in places.items() if channels in {0, 3}]
    if len(exact := [layout for layout in possible if places[layout] == 3]) == 1:
        possible = exact
    if not possible:
        raise MetadataError(
            f"--input: expected 3 channels, got an input of the shape {sizes}. Export it for RGB images."
        )
    if settings.layout:
        if settings.layout not in possible:
            raise MetadataError(f"--layout: expected an input with 3 channels, got {sizes} for {settings.layout}")
        return settings.layout
    if len(possible) != 1:
        raise MetadataError(f"--layout: expected NCHW or NHWC for an input of the shape {sizes}, got none")
    return possible[0]


def _check_std(given: Any, settings: AddSettings) -> None:
    """Check that an input of whole numbers gets pixels from 0 to 255, or shifted ones."""
    if given.type.tensor_type.elem_type in WHOLE_NUMBERS and not np.allclose(settings.std, 1 / 255, rtol=1e-3):
        raise MetadataError(
            f"--std: expected 0.00392157,0.00392157,0.00392157, as the ONNX file's input takes whole numbers, got "
            f"{','.join(f'{one:g}' for one in settings.std)}"
        )


def _session(graph: bytes, name: str) -> Any:
    try:
        return session_of(graph)
    except PlurumError:
        raise
    # ONNX Runtime's errors have no common class.
    except Exception as error:
        raise MetadataError(f"{name} can't be run by ONNX Runtime: {_first_line(error)}. Export it again.") from error


def _original_outputs(session: Any, model: Any, settings: AddSettings, images: Images) -> Floats:
    """Return the outputs of the original graph, `[images, outputs]`, one image at a time."""
    given, output = input_of(model, settings.input), output_of(model, settings.output)
    kind = given.type.tensor_type.elem_type
    batch = given.type.tensor_type.shape.dim[0].dim_value or 1
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)

    def run() -> Floats:
        rows = []
        for image in images:
            values = np.repeat((image.round() if kind in WHOLE_NUMBERS else image)[None], batch, axis=0).astype(dtype)
            rows.append(session.run([output.name], {given.name: values})[0][:1].astype(np.float64).reshape(-1))
        return np.stack(rows)

    return _logits(run, "the ONNX file", images.shape)


def _logits(run: Callable[[], Any], name: str, shape: Sequence[int]) -> Floats:
    """Return the outputs that `run` computes, after checking that they are finite."""
    try:
        found: Floats = np.asarray(run(), dtype=np.float64)
    except PlurumError:
        raise
    # Code of others, and ONNX Runtime, can raise anything.
    except Exception as error:
        raise MetadataError(
            f"{name} can't predict images {list(shape)}: {type(error).__name__}: {_first_line(error)}. Check "
            f"--image-size and --layout."
        ) from error
    if not np.isfinite(found).all():
        raise MetadataError(
            f"{name}: expected finite outputs, got NaN or infinity. Check its weights, --mean and --std."
        )
    return found


def _check_kind(found: Floats, kind: str) -> None:
    """Check that outputs are of the stated kind."""
    sums = found.sum(axis=1)
    is_shares = bool((found >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all())
    if kind == "logits" and is_shares:
        raise MetadataError(
            "--outputs: expected logits, got probabilities, which sum to 1. Use --outputs probabilities."
        )
    if kind == "probabilities" and not is_shares:
        raise MetadataError(
            f"--outputs: expected probabilities that sum to 1, got values from {found.min():.3g} to {found.max():.3g} "
            f"with sums from {sums.min():.3g} to {sums.max():.3g}. Use --outputs logits, or a classifier of one class "
            f"per image."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
