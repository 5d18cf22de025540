"""Conversion of ONNX graphs from elsewhere to the form in which a run stores them.

IMAGES  float32 [batch, 3, height, width], normalised  →  LOGITS  float32 [batch, classes]

The converted graph has the opset of all members, computes in float32, and takes any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plurum.conventions import OPSET
from plurum.errors import MetadataError
from plurum.onnx_graphs.files import tensors_of
from plurum.spec import LOGITS

__all__ = [
    "FEATURES",
    "IMAGES",
    "WHOLE_NUMBERS",
    "GraphSource",
    "Layout",
    "OutputKind",
    "convert_graph",
    "input_of",
    "output_of",
]

IMAGES, FEATURES = "IMAGES", "FEATURES"
Layout = Literal["NCHW", "NHWC"]
OutputKind = Literal["logits", "probabilities"]
# Of a probability, so that its logarithm is finite in every precision.
_LEAST = 1e-7
# Types of inputs that take pixels, by their numbers in onnx.TensorProto: UINT8, UINT16, INT16, INT32, INT64; and
# FLOAT, FLOAT16, DOUBLE, BFLOAT16.
WHOLE_NUMBERS = {2, 4, 5, 6, 7}
_REAL_NUMBERS = {1, 10, 11, 16}
_OURS = "plurum/"


@dataclass(frozen=True)
class GraphSource:
    """Input and outputs of a graph from elsewhere.

    Attributes:
        input: Name of the input; empty if it has only one.
        output: Name of the output; empty if it has only one.
        layout: Order of the input's dimensions.
        kind: Kind of the outputs.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        order: Index of each class of the run among the graph's outputs.
    """

    input: str
    output: str
    layout: Layout
    kind: OutputKind
    height: int
    width: int
    order: tuple[int, ...]


def input_of(model: Any, name: str) -> Any:
    """Return the graph's input for images, whose name may be empty if there is only one.

    Raises:
        MetadataError: there is no such input, there are several, or it is not a batch of images.
    """
    from onnx import TensorProto

    # Files of old versions list weights as inputs, too.
    weights = {one.name for one in model.graph.initializer}
    found = _chosen("--input", name, [one for one in model.graph.input if one.name not in weights])
    others = [one.name for one in model.graph.input if one.name not in weights and one.name != found.name]
    if others:
        raise MetadataError(f"--input: expected a graph with one input, got another one: {', '.join(others)}")
    if len(found.type.tensor_type.shape.dim) != 4:
        raise MetadataError(f"--input: expected 4 dimensions, a batch of images, got {_shape_text(found)}")
    if found.type.tensor_type.elem_type not in WHOLE_NUMBERS | _REAL_NUMBERS:
        kind = TensorProto.DataType.Name(found.type.tensor_type.elem_type)
        raise MetadataError(f"--input: expected numbers of at least 8 bits, got {kind}. Export the model for pixels.")
    return found


def output_of(model: Any, name: str) -> Any:
    """Return the graph's output, whose name may be empty if there is only one.

    Raises:
        MetadataError: there is no such output, there are several and none is named, or it is no tensor.
    """
    found = _chosen("--output", name, list(model.graph.output))
    if not found.type.HasField("tensor_type"):
        raise MetadataError(f"--output: expected a tensor, got {found.name}, a sequence or map. Export without ZipMap.")
    return found


def convert_graph(model: Any, source: GraphSource) -> Any:
    """Return the graph as IMAGES → LOGITS, in float32, for any batch, in the opset of all members.

    Args:
        model: Model from `read_onnx`.
        source: Input and outputs of the model.

    Raises:
        MetadataError: the opset can't be converted.
    """
    from onnx import compose, helper, shape_inference

    model = _with_opset(model)
    given = input_of(model, source.input)
    given_type = given.type.tensor_type.elem_type
    batch = given.type.tensor_type.shape.dim[0]
    if batch.dim_value > 0:
        _free_batch(model, batch.dim_value)
    _widen(model)
    model = compose.add_prefix(model, "given/")
    given = input_of(model, source.input and f"given/{source.input}")
    found = output_of(model, source.output and f"given/{source.output}")
    graph = model.graph
    steps = [*_input_nodes(source, given.name, given_type), *graph.node, *_output_nodes(graph, source, found)]
    weights = {one.name: one for one in graph.initializer}
    converted = helper.make_graph(
        steps,
        "member",
        [helper.make_tensor_value_info(IMAGES, 1, ["batch", 3, source.height, source.width])],
        [helper.make_tensor_value_info(LOGITS, 1, ["batch", len(source.order)])],
        [*weights.values(), *_constants(source)],
    )
    opset = [helper.make_opsetid("", OPSET)]
    result = helper.make_model(converted, opset_imports=opset, ir_version=helper.find_min_ir_version_for(opset))
    result = shape_inference.infer_shapes(_pruned(result))
    _expose_features(result)
    return result


def _chosen(option: str, name: str, values: list[Any]) -> Any:
    names = [one.name for one in values]
    if not name and len(values) == 1:
        return values[0]
    if name not in names:
        raise MetadataError(f"{option}: expected one of {', '.join(names) or 'none'}, got {name or 'no name'}")
    return values[names.index(name)]


def _shape_text(value: Any) -> str:
    sizes = (one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim)
    return f"[{', '.join(map(str, sizes))}]"


def _with_opset(model: Any) -> Any:
    """Return the model in the opset of all members."""
    from onnx import version_converter

    version = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), 0)
    if version == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    # The converter has no class of errors of its own.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MetadataError(
            f"its opset {version} can't be converted to {OPSET}: {reason}. Export the model with opset {OPSET}."
        ) from error


def _free_batch(model: Any, batch: int) -> None:
    """Make a fixed batch dynamic: constant shapes of Reshape that begin with the batch take it from their input.

    Whether that suffices is seen from the predictions for several images.
    """
    from onnx import numpy_helper

    reshapes = [node for node in model.graph.node if node.op_type == "Reshape" and len(node.input) > 1]
    shapes = {node.input[1] for node in reshapes}
    makers = {output: node for node in model.graph.node for output in node.output}
    tensors = {one.name: one for one in model.graph.initializer}
    for name in shapes:
        node = makers.get(name)
        if node is not None and node.op_type == "Constant":
            tensor = next((one.t for one in node.attribute if one.name == "value"), None)
        else:
            tensor = tensors.get(name)
        values = None if tensor is None else numpy_helper.to_array(tensor).copy()
        if tensor is None or values is None or values.ndim != 1 or not len(values) or values[0] != batch:
            continue
        # A size to infer, else a copy of the input's; torch's exporter sets allowzero, and then 0 copies nothing.
        values[0] = 0 if -1 in values[1:] else -1
        changed = numpy_helper.from_array(values, tensor.name)
        tensor.CopyFrom(changed)
        for node in reshapes if values[0] == 0 else ():
            for attribute in node.attribute if node.input[1] == name else ():
                attribute.i = 0 if attribute.name == "allowzero" else attribute.i


def _widen(model: Any) -> None:
    """Compute in float32 whatever the graph computes in FP16, BF16 or double."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    wide = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    for tensor in tensors_of(model):
        if tensor.data_type in wide:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i in wide:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in wide:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _input_nodes(source: GraphSource, name: str, given_type: int) -> list[Any]:
    """Return the nodes from IMAGES to the graph's own input."""
    from onnx import helper

    nodes, last = [], IMAGES
    if source.layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [last], [f"{_OURS}last"], perm=[0, 2, 3, 1]))
        last = f"{_OURS}last"
    if given_type in WHOLE_NUMBERS:
        nodes.append(helper.make_node("Round", [last], [f"{_OURS}round"]))
        nodes.append(helper.make_node("Cast", [f"{_OURS}round"], [name], to=given_type))
    else:
        nodes.append(helper.make_node("Identity", [last], [name]))
    return nodes


def _output_nodes(graph: Any, source: GraphSource, found: Any) -> list[Any]:
    """Return the nodes from the graph's own output to LOGITS, of the run's classes in their order."""
    from onnx import helper

    last, nodes = found.name, []
    if source.kind == "probabilities":
        softmax = next((node for node in graph.node if found.name in node.output and node.op_type == "Softmax"), None)
        if softmax is not None and _axis(softmax) in {-1, len(found.type.tensor_type.shape.dim) - 1}:
            # Softmax of its own input is the same probability, without rounding of small ones.
            last = softmax.input[0]
        else:
            nodes = [
                helper.make_node("Clip", [last, f"{_OURS}least"], [f"{_OURS}clip"]),
                helper.make_node("Log", [f"{_OURS}clip"], [f"{_OURS}log"]),
            ]
            last = f"{_OURS}log"
    nodes.append(helper.make_node("Flatten", [last], [f"{_OURS}flat"], axis=1))
    if source.order == tuple(range(len(source.order))):
        nodes[-1].output[0] = LOGITS
    else:
        nodes.append(helper.make_node("Gather", [f"{_OURS}flat", f"{_OURS}order"], [LOGITS], axis=1))
    return nodes


def _expose_features(model: Any) -> None:
    """Add the output FEATURES, the inputs of the last linear layer, if the graph ends in one."""
    from onnx import helper

    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {one.name: list(one.dims) for one in graph.initializer}
    node = makers[LOGITS]
    while node.op_type in {"Flatten", "Gather", "Identity", "Add"} and node.input[0] in makers:
        # The bias of a MatMul may stand on either side.
        node = makers[node.input[1] if node.op_type == "Add" and node.input[1] in makers else node.input[0]]
    if node.op_type not in {"Gemm", "MatMul"} or node.input[1] not in weights:
        return
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in graph.value_info}
    if ranks.get(node.input[0]) != 2 or node.input[0] not in makers:
        return
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    width = weights[node.input[1]][1 if turned else 0]
    graph.node.append(helper.make_node("Identity", [node.input[0]], [FEATURES]))
    graph.output.append(helper.make_tensor_value_info(FEATURES, 1, ["batch", width]))


def _axis(softmax: Any) -> int:
    return next((one.i for one in softmax.attribute if one.name == "axis"), -1)


def _constants(source: GraphSource) -> list[Any]:
    import numpy as np
    from onnx import numpy_helper

    return [
        numpy_helper.from_array(np.array(_LEAST, np.float32), f"{_OURS}least"),
        numpy_helper.from_array(np.array(source.order, np.int64), f"{_OURS}order"),
    ]


def _pruned(model: Any) -> Any:
    """Return the model without nodes and weights that LOGITS does not need."""
    makers = {output: node for node in model.graph.node for output in node.output}
    needed: set[str] = set()
    waiting = [one.name for one in model.graph.output]
    while waiting:
        name = waiting.pop()
        if name and name not in needed:
            needed.add(name)
            waiting.extend(makers[name].input if name in makers else ())
    nodes = [node for node in model.graph.node if needed & set(node.output)]
    weights = [one for one in model.graph.initializer if one.name in needed]
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    return model
