"""ONNX files from elsewhere become members that predict what the file does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plurum.errors import MetadataError, OutputError, PlurumError, SettingsError
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.spec import Member, read_member
from plurum.training import add_member
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax
from tests.sample_runs.fitted_run import CLASSES
from tests.training.adding.onnx_samples import MEAN, SIZE, STD, expected_probabilities, settings, write_graph

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "as it is": ({}, {}, 1e-5),
    "softmax inside": ({"softmax": True}, {"outputs": "probabilities"}, 1e-5),
    "NHWC": ({"layout": "NHWC"}, {}, 1e-5),
    "NHWC, fixed batch, softmax": (
        {"layout": "NHWC", "batch": 1, "softmax": True},
        {"layout": "NHWC", "outputs": "probabilities"},
        1e-5,
    ),
    "a fixed batch of 4": ({"batch": 4}, {"input": "picture", "output": "scores"}, 1e-5),
    "FP16": ({"half": True}, {}, 5e-3),
    "opset 11": ({"opset": 11}, {}, 1e-5),
    "opset 22": ({"opset": 22}, {}, 1e-5),
    "any size": ({"size": "side"}, {"image_size": SIZE, "layout": "NCHW"}, 1e-5),
}


def probabilities_of(run: Run, member: Member) -> Any:
    rows = run.table().rows("test")
    model = model_from_checkpoint(member, run.checkpoint(member))
    return softmax(predict_logits(model, run.pixels(), rows, member.image))


def members_of(run: Run) -> list[str]:
    return sorted(path.name for path in (run.path / "members").iterdir())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_becomes_a_member(name: str, fresh_run: Run, tmp_path: Path) -> None:
    made, given, tolerance = VARIANTS[name]
    write_graph(tmp_path / "their model.onnx", **made)
    added = add_member(fresh_run, [str(tmp_path / "their model.onnx")], settings(**given))
    member = read_member(fresh_run.member_folder("their_model") / "member.json")
    assert member == added.member
    assert (member.format, member.arch, member.image.height) == ("onnx", "ONNX file", SIZE)
    expected = expected_probabilities(fresh_run.pixels()[fresh_run.table().rows("test")])
    np.testing.assert_allclose(probabilities_of(fresh_run, member), expected, atol=tolerance)
    labels = fresh_run.table().labels[fresh_run.table().rows("validation")]
    validated = expected_probabilities(fresh_run.pixels()[fresh_run.table().rows("validation")])
    assert member.validation is not None
    assert member.validation.accuracy == pytest.approx(float((validated.argmax(axis=1) == labels).mean()))


def test_classes_may_be_in_another_order(fresh_run: Run, tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx")
    turned = (*CLASSES[3:], *CLASSES[:3])
    member = add_member(fresh_run, [str(tmp_path / "model.onnx")], settings(classes=turned)).member
    assert member.classes == CLASSES
    expected = expected_probabilities(fresh_run.pixels()[fresh_run.table().rows("test")])
    order = [turned.index(name) for name in CLASSES]
    np.testing.assert_allclose(probabilities_of(fresh_run, member), expected[:, order], atol=1e-5)


def test_weights_beside_the_file_are_read(fresh_run: Run, tmp_path: Path) -> None:
    model = write_graph(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    member = add_member(fresh_run, [str(tmp_path / "model.onnx")], settings()).member
    (tmp_path / "weights.bin").unlink()
    expected = expected_probabilities(fresh_run.pixels()[fresh_run.table().rows("test")])
    np.testing.assert_allclose(probabilities_of(fresh_run, member), expected, atol=1e-5)


def _take_whole_numbers(model: Any, kind: int = TensorProto.INT64) -> None:
    """Put the normalisation into the graph."""
    model.graph.input[0].type.tensor_type.elem_type = kind
    scale, shift = (
        np.array(one, np.float32).reshape(1, 3, 1, 1) for one in (np.array(STD) * 255, np.array(MEAN) * 255)
    )
    model.graph.initializer.extend([numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(shift, "shift")])
    model.graph.node[0].input[0] = "normalised"
    steps = [
        helper.make_node("Cast", ["picture"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["real", "shift"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["normalised"]),
    ]
    for step in reversed(steps):
        model.graph.node.insert(0, step)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64])
def test_inputs_may_be_whole_numbers(kind: int, fresh_run: Run, tmp_path: Path) -> None:
    _changed(lambda model: _take_whole_numbers(model, kind))(tmp_path / "model.onnx")
    given = settings(mean=(0, 0, 0), std=(1 / 255,) * 3)
    member = add_member(fresh_run, [str(tmp_path / "model.onnx")], given).member
    expected = expected_probabilities(fresh_run.pixels()[fresh_run.table().rows("test")])
    # Resized pixels are rounded.
    np.testing.assert_allclose(probabilities_of(fresh_run, member), expected, atol=0.05)


def _changed(change: Callable[[Any], None], **made: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        model = write_graph(path, **made)
        change(model)
        onnx.save(model, path)

    return write


def _use_custom(model: Any) -> None:
    model.graph.node[1].domain = "colleague.ops"
    model.opset_import.append(helper.make_opsetid("colleague.ops", 1))


def _branch(model: Any) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["conv"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    relu = helper.make_node("If", ["yes"], ["relu"], then_branch=branch, else_branch=branch)
    model.graph.node[1].CopyFrom(relu)


def _add_noise(model: Any) -> None:
    model.graph.node.insert(2, helper.make_node("RandomNormalLike", ["relu"], ["noise"]))


def _point_elsewhere(model: Any) -> None:
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../etc/hostname")


def _lose_weights(model: Any) -> None:
    _point_elsewhere(model)
    model.graph.initializer[0].external_data[0].value = "lost.bin"


def _fix_batch_elsewhere(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 6, 1, 11), np.float32), "token"))
    model.graph.node[1].CopyFrom(helper.make_node("Concat", ["conv", "token"], ["relu"], axis=2))
    head = model.graph.initializer[1]
    head.CopyFrom(numpy_helper.from_array(np.zeros((6 * 12 * 11, 10), np.float32), "head"))
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.array([1, 6 * 12 * 11]), "shape"))


def _spoil(model: Any) -> None:
    weights = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weights[0] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weights, "bias"))


def _end_in(operator: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node.append(helper.make_node(operator, ["scores"], ["ended"]))
        model.graph.output[0].name = "ended"

    return change


def _return_sequence(model: Any) -> None:
    _end_in("SequenceConstruct")(model)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("ended", TensorProto.FLOAT, None))


def _take_grey(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((6, 1, 5, 5), np.float32), "filters"))


def _hide_weights(model: Any) -> None:
    """Name weights in another folder in a constant of a function."""
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
    hidden.ClearField("float_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../../etc/hostname")
    steps = [helper.make_node("Constant", [], ["c"], value=hidden), helper.make_node("Add", ["x", "c"], ["y"])]
    model.functions.append(helper.make_function("own", "Shift", ["x"], ["y"], steps, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Shift", ["scores"], ["shifted"], domain="own"))
    model.graph.output[0].name = "shifted"


def _hide_sparse_weights(model: Any) -> None:
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [0.5])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [3])
    constant = helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, places, [10]))
    model.graph.node.extend([constant, helper.make_node("Add", ["scores", "c"], ["shifted"])])
    model.graph.output[0].name = "shifted"


def _add_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["batch", 1]))


def _write(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _truncate(path: Path) -> None:
    write_graph(path)
    path.write_bytes(path.read_bytes()[:2000])


REFUSALS: dict[str, tuple[Callable[[Path], object], dict[str, Any], type[PlurumError], str]] = {
    "custom operators": (_changed(_use_custom), {}, MetadataError, "only operators of the ONNX standard, got Relu of"),
    "control flow": (_changed(_branch), {}, MetadataError, "expected no control flow, got If"),
    "random operators": (_changed(_add_noise), {}, MetadataError, "got RandomNormalLike. Export the model in eval"),
    "weights elsewhere": (
        _changed(_point_elsewhere),
        {},
        MetadataError,
        r"expected weights in the same folder, got '\.\./\.\./etc/hostname'",
    ),
    "lost weights": (_changed(_lose_weights), {}, MetadataError, "Keep both files in one folder"),
    "a batch fixed inside": (
        _changed(_fix_batch_elsewhere, batch=1),
        {},
        MetadataError,
        "can't take 8 images at once.*Export the model with a dynamic batch",
    ),
    "NaN": (_changed(_spoil), {}, MetadataError, "expected finite outputs, got NaN or infinity"),
    "whole numbers as fractions": (
        _changed(_take_whole_numbers),
        {},
        MetadataError,
        r"--std: expected 0\.00392157,.* takes whole numbers, got 0\.25,0\.2,0\.3",
    ),
    "Booleans": (
        _changed(lambda model: _take_whole_numbers(model, TensorProto.BOOL)),
        {},
        MetadataError,
        "--input: expected numbers of at least 8 bits, got BOOL",
    ),
    "a sigmoid": (
        _changed(_end_in("Sigmoid")),
        {},
        MetadataError,
        "got those of a sigmoid. Export the model without it",
    ),
    "a sequence": (_changed(_return_sequence), {}, MetadataError, "--output: expected a tensor, got ended, a sequence"),
    "grey images": (_changed(_take_grey), {}, MetadataError, r"--input: expected 3 channels, got .*1, 48, 48\]"),
    "hidden weights": (_changed(_hide_weights), {}, MetadataError, "expected weights in the same folder, got"),
    "sparse weights": (_changed(_hide_sparse_weights), {}, MetadataError, "expected dense weights, got sparse ones"),
    "an architecture": (
        write_graph,
        {"arch": "resnet18"},
        SettingsError,
        "--arch: expected no architecture for an ONNX",
    ),
    "two inputs": (_changed(_add_input), {"input": "picture"}, MetadataError, "expected a graph with one input"),
    "no ONNX": (_write(b"PK\x03\x04 nothing"), {}, MetadataError, "is not an ONNX file"),
    "empty": (_write(b""), {}, MetadataError, "is not an ONNX file: its graph has no operator"),
    "truncated": (_truncate, {}, MetadataError, "is not an ONNX file"),
    "probabilities as logits": (
        lambda path: write_graph(path, softmax=True),
        {},
        MetadataError,
        "expected logits, got probabilities, which sum to 1. Use --outputs probabilities",
    ),
    "logits as probabilities": (write_graph, {"outputs": "probabilities"}, MetadataError, "that sum to 1, got values"),
    "no outputs": (write_graph, {"outputs": None}, SettingsError, "--outputs: expected logits or probabilities"),
    "another layout": (write_graph, {"layout": "NHWC"}, MetadataError, "--layout: expected an input with 3 channels"),
    "another size": (write_graph, {"image_size": 32}, MetadataError, "expected the ONNX file's 48 × 48, got 32"),
    "no size": (
        lambda path: write_graph(path, size="side"),
        {"layout": "NCHW"},
        MetadataError,
        "--image-size: expected a size",
    ),
    "too few classes": (write_graph, {"classes": CLASSES[1:]}, SettingsError, "--classes: expected the classes of the"),
    "another input": (write_graph, {"input": "image"}, MetadataError, "--input: expected one of picture, got image"),
    "a reserved name": (write_graph, {"name": "voter"}, SettingsError, "--name: expected letters"),
    "a name with a slash": (write_graph, {"name": "../x"}, SettingsError, "--name: expected letters"),
    "a name that is taken": (write_graph, {"name": "resnet10t"}, OutputError, "has a member 'resnet10t' already"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_can_not_be_a_member_is_refused_and_nothing_is_written(name: str, run: Run, tmp_path: Path) -> None:
    write, given, kind, message = REFUSALS[name]
    before = members_of(run)
    write(tmp_path / "model.onnx")
    with pytest.raises(kind, match=message) as caught:
        add_member(run, [str(tmp_path / "model.onnx")], settings(**given))
    assert "\n" not in str(caught.value)
    assert members_of(run) == before


def test_a_link_to_weights_is_refused(run: Run, tmp_path: Path) -> None:
    model = write_graph(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    shutil.move(tmp_path / "weights.bin", tmp_path / "others.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "others.bin")
    with pytest.raises(MetadataError, match="got fewer, or a link"):
        add_member(run, [str(tmp_path / "model.onnx")], settings())


def test_a_changed_graph_is_refused(fresh_run: Run, tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx")
    member = add_member(fresh_run, [str(tmp_path / "model.onnx")], settings()).member
    file = fresh_run.checkpoint(member)
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(MetadataError, match="its SHA-256 differs"):
        model_from_checkpoint(member, file)
    file.write_bytes(b"nothing")
    with pytest.raises(MetadataError, match="its SHA-256 differs"):
        model_from_checkpoint(member, file)
