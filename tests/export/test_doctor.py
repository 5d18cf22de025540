"""Each planted fault is found by its check."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plurum.errors import RepositoryError
from plurum.export.doctor import check_repository
from plurum.export.manifest import read_manifest
from plurum.export.repository.decoders import missing_decoders
from plurum.export.repository.findings import (
    interface_faults,
    operator_faults,
    pixel_faults,
    precision_faults,
    quantisation_faults,
)
from plurum.spec import read_ensemble, write_metadata
from tests.cli.command_line import CommandLine

MEMBER = "resnet10t"


def found(repository: Path) -> dict[tuple[str, str], str]:
    """Return the details of errors, by check and subject."""
    return {(one.check, one.subject): one.detail for one in check_repository(repository) if one.state == "error"}


def graph_of(repository: Path) -> Path:
    return repository / MEMBER / "1" / "model.onnx"


def edit_config(repository: Path, model: str, old: str, new: str) -> None:
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(repository: Path) -> None:
    path = graph_of(repository)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_a_weight(repository: Path) -> None:
    model = onnx.load(graph_of(repository))
    weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, graph_of(repository))


def wire_a_member_twice(repository: Path) -> None:
    edit_config(repository, "ensemble_pixels", f'value: "{MEMBER}_LOGITS"', 'value: "regnetx_002_LOGITS"')


def copy_a_member(repository: Path) -> None:
    shutil.copyfile(repository / "regnetx_002" / "1" / "model.onnx", graph_of(repository))
    manifest = read_manifest(repository)
    entry = next(one for one in manifest.artefacts if one.model == "regnetx_002")
    others = [one for one in manifest.artefacts if one.model != MEMBER]
    twin = entry.model_copy(update={"model": MEMBER, "file": f"{MEMBER}/1/model.onnx"})
    write_metadata(repository / "export.json", manifest.model_copy(update={"artefacts": (twin, *others)}))


def add_a_version(repository: Path) -> None:
    """Add a version; Triton serves the highest one."""
    (repository / MEMBER / "2").mkdir()
    shutil.copyfile(repository / "regnetx_002" / "1" / "model.onnx", repository / MEMBER / "2" / "model.onnx")


def edit_every_copy(repository: Path) -> None:
    for path in (repository / "ensemble.json", *repository.glob("*/1/ensemble.json")):
        metadata = json.loads(path.read_text())
        metadata["voting"]["temperature"], metadata["review"]["threshold"] = 3.0, 0.1
        path.write_text(json.dumps(metadata))


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, str], str]] = {
    "truncated file": (truncate, ("graph", MEMBER), ""),
    "edited weight": (edit_a_weight, ("hash", MEMBER), "was changed since it was exported"),
    "missing file": (lambda path: graph_of(path).unlink(), ("hash", MEMBER), "model.onnx is missing"),
    "wrong dtype": (
        lambda path: edit_config(path, MEMBER, "TYPE_UINT8", "TYPE_FP32"),
        ("interface", MEMBER),
        "input PIXELS is UINT8 in the graph and TYPE_FP32 in config.pbtxt",
    ),
    "wrong shape": (
        lambda path: edit_config(path, MEMBER, "dims: 10", "dims: 9"),
        ("interface", MEMBER),
        "output LOGITS is [10] in the graph and [9] in config.pbtxt",
    ),
    "wrong name": (
        lambda path: edit_config(path, MEMBER, '"LOGITS"', '"SCORES"'),
        ("interface", MEMBER),
        "config.pbtxt states the output SCORES; the graph has LOGITS",
    ),
    "broken config": (lambda path: edit_config(path, MEMBER, "dims", "dimms"), ("config", MEMBER), "dimms"),
    "member wired twice": (
        wire_a_member_twice,
        ("wiring", "ensemble_pixels"),
        "member resnet10t does not reach the voter",
    ),
    "same graph twice": (copy_a_member, ("members", "broken"), "the same graph"),
    "step to nowhere": (
        lambda path: edit_config(path, "ensemble", 'model_name: "voter"', 'model_name: "judge"'),
        ("wiring", "ensemble"),
        "a step calls judge, which is not in the repository",
    ),
    "other metadata": (
        lambda path: (path / "voter" / "1" / "ensemble.json").write_text("{}"),
        ("contract", "voter"),
        "voter/1/ensemble.json differs from",
    ),
    "leftover": (
        lambda path: (path / "model.bak").touch(),
        ("leftovers", "broken"),
        "model.bak does not belong to this export",
    ),
    "another version": (
        add_a_version,
        ("leftovers", "broken"),
        f"{MEMBER}/2/model.onnx does not belong to this export",
    ),
    "another version, empty": (
        lambda path: (path / MEMBER / "2").mkdir(),
        ("leftovers", "broken"),
        f"{MEMBER}/2/ does not belong to this export",
    ),
    "every copy edited": (edit_every_copy, ("files", "broken"), "ensemble.json was changed since it was exported"),
    "every copy edited, and clients told another": (
        edit_every_copy,
        ("contract", "ensemble_pixels"),
        "the parameter contract in config.pbtxt differs from ensemble.json",
    ),
    "clients told nothing": (
        lambda path: edit_config(path, "ensemble", 'key: "contract"', 'key: "covenant"'),
        ("contract", "ensemble"),
        "is not the text of an ensemble.json",
    ),
    "no chain": (lambda path: shutil.rmtree(path / "ensemble"), ("config", "ensemble"), "config.pbtxt is missing"),
    "no version folder": (
        lambda path: (path / "ensemble" / "1").rmdir(),
        ("files", "broken"),
        "ensemble/1/ is missing",
    ),
    **{
        f"no {name}": (
            lambda path, name=name: (path / name).unlink(),  # type: ignore[misc]
            ("files", "broken"),
            f"{name} is missing",
        )
        for name in (
            "voter/1/voting/decisions.py",
            "voter/1/metrics.py",
            "preprocess/1/images/__init__.py",
            "parity.json",
        )
    },
    "another vote": (
        lambda path: (path / "voter" / "1" / "voting" / "decisions.py").write_text("decide = None"),
        ("files", "broken"),
        "voter/1/voting/decisions.py was changed since it was exported",
    ),
    "wrong dtype of the voter": (
        lambda path: edit_config(path, "voter", "TYPE_BOOL", "TYPE_INT32"),
        ("config", "voter"),
        "output PREDICTION_SET is TYPE_INT32 [10] in config.pbtxt and TYPE_BOOL [10] by ensemble.json",
    ),
    "wrong dtype of preprocess": (
        lambda path: edit_config(path, "preprocess", "TYPE_UINT8", "TYPE_FP32"),
        ("config", "preprocess"),
        "output PIXELS is TYPE_FP32 [32, 32, 3] in config.pbtxt",
    ),
    "wrong dtype of a chain": (
        lambda path: edit_config(path, "ensemble", "TYPE_STRING", "TYPE_UINT8"),
        ("config", "ensemble"),
        "input IMAGE is TYPE_UINT8 [1] in config.pbtxt and TYPE_STRING [1] by ensemble.json",
    ),
    "smaller batches": (
        lambda path: edit_config(path, "voter", "max_batch_size: 8", "max_batch_size: 4"),
        ("config", "voter"),
        "max_batch_size: expected 8 in config.pbtxt, got 4",
    ),
    "no manifest": (lambda path: (path / "export.json").unlink(), ("manifest", "broken"), "can't be read"),
}


def test_a_fresh_repository_is_well(repository: Path) -> None:
    findings = check_repository(repository)
    assert found(repository) == {}
    assert {"hash", "graph", "interface", "pixels", "precision", "members", "wiring", "leftovers"} <= {
        one.check for one in findings if one.state == "ok"
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_check(repository: Path, tmp_path: Path, fault: str) -> None:
    plant, place, detail = FAULTS[fault]
    broken = shutil.copytree(repository, tmp_path / "broken")
    plant(broken)
    errors = found(broken)
    assert place in errors
    assert detail in errors[place]


def test_an_export_from_before_files_were_listed_is_read(repository: Path, tmp_path: Path) -> None:
    old = shutil.copytree(repository, tmp_path / "old")
    manifest = json.loads((old / "export.json").read_text())
    del manifest["files"]
    (old / "export.json").write_text(json.dumps(manifest))
    (finding,) = [one for one in check_repository(old) if one.check == "files"]
    assert (finding.state, finding.detail.endswith("; export again")) == ("skipped", True)
    assert found(old) == {}
    (old / "model.bak").touch()
    assert found(old) == {("leftovers", "old"): "model.bak does not belong to this export"}


def test_missing_decoders_are_named_with_the_command_that_adds_them(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = read_ensemble(repository / "ensemble.json").image
    windowed = image.model_copy(update={"window": (2048.0, 4096.0)})
    # A Triton on PATH beside a Python without packages, as in NVIDIA's container.
    (tmp_path / "tritonserver").write_text("#!/bin/sh\n")
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_decoders(image) == "pip install pillow"
    assert missing_decoders(windowed) == "pip install pillow 'pydicom[pixeldata]>=3'"
    assert found(repository)["decoders", "preprocess"].endswith("run: pip install pillow")
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert missing_decoders(windowed) == ""
    monkeypatch.setenv("PATH", "")
    assert missing_decoders(windowed) is None


def small(operator: str = "Identity", opset: int = 20, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a graph PIXELS → operator → LOGITS with one weight of a hundred numbers."""
    inputs = ["PIXELS"] * (3 if operator == "Attention" else 1)
    attributes: dict[str, Any] = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    weight = helper.make_tensor("weight", kind, [100], np.zeros(100))
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["LOGITS"], **attributes)],
        "small",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 4])],
        [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_an_attention_operator_is_named() -> None:
    faults = operator_faults(small("Attention", opset=23))
    assert faults[0].startswith("opset 23;")
    assert "Attention operator, which TensorRT parses and then fails to build" in faults[1]
    assert operator_faults(small()) == []


def test_bytes_that_are_not_cast_first() -> None:
    assert pixel_faults(small("Transpose")) == ["PIXELS, which is UINT8, goes into Transpose before it is cast"]
    assert pixel_faults(small("Cast")) == []


def test_a_precision_that_is_only_claimed(repository: Path) -> None:
    entry = read_manifest(repository).artefacts[0].model_copy(update={"precision": "fp16"})
    assert precision_faults(small(), entry) == ["only 0% of the weights are FP16, the precision in the manifest"]
    assert precision_faults(small(kind=TensorProto.FLOAT16), entry) == []
    assert precision_faults(small(), entry.model_copy(update={"precision": "fp32"})) == []


def test_quantisation_for_the_other_target() -> None:
    model = small("Cast")
    model.graph.initializer.append(numpy_helper.from_array(np.array(7, np.uint8), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["LOGITS", "scale", "zero"], ["q"]))
    assert quantisation_faults(model, "onnxruntime") == []
    assert quantisation_faults(model, "tensorrt") == [
        "a zero point other than 0; TensorRT takes symmetric quantisation",
        "activations quantised to uint8; TensorRT takes int8",
    ]


def test_a_batch_that_is_fixed(repository: Path) -> None:
    from plurum.serving.triton.staging import read_config

    model = onnx.load(graph_of(repository))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert interface_faults(model, read_config(repository / MEMBER)) == [
        "input PIXELS has no dynamic batch dimension, and config.pbtxt takes batches of 8"
    ]


def test_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a Plurum model repository; create one with plurum export RUN"):
        check_repository(tmp_path)


def test_the_command(repository: Path, tmp_path: Path, plurum: CommandLine) -> None:
    assert ", 0 errors" in plurum.said("doctor", repository)
    broken = shutil.copytree(repository, tmp_path / "broken")
    (broken / "model.bak").touch()
    code, out, _ = plurum.ended("doctor", broken, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["errors"] == 1
    assert [one["check"] for one in report["findings"] if one["state"] == "error"] == ["leftovers"]
