"""Repositories: contents, checks and atomic replacement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from plurum.errors import MetadataError, OutputError, ParityError
from plurum.export import ExportSettings, repository_from_onnx, repository_from_run
from plurum.export.graphs import member as graphs_module
from plurum.export.manifest import is_current
from plurum.export.repository import selection
from plurum.run import Run
from plurum.spec import read_ensemble
from tests.cli.command_line import CommandLine


def config_of(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_names_types_and_shapes_match_the_metadata(repository: Path) -> None:
    string, uint8, fp32, boolean = (
        model_config_pb2.DataType.Value(f"TYPE_{name}") for name in ("STRING", "UINT8", "FP32", "BOOL")
    )
    expected = {
        "PROBABILITIES": (fp32, [10]),
        "LABEL": (string, [1]),
        "ENTROPY": (fp32, [1]),
        "DISAGREEMENT": (fp32, [1]),
        "STD": (fp32, [10]),
        "MEMBER_PROBABILITIES": (fp32, [2, 10]),
        "PREDICTION_SET": (boolean, [10]),
        "REVIEW": (boolean, [1]),
    }
    for model, inputs in (
        ("ensemble", {"IMAGE": (string, [1])}),
        ("ensemble_pixels", {"PIXELS": (uint8, [32, 32, 3])}),
    ):
        config = config_of(repository, model)
        assert {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.input} == inputs
        assert {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.output} == expected


def test_models_and_their_batching(repository: Path) -> None:
    models = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    assert models == {"ensemble", "ensemble_pixels", "preprocess", "voter", "resnet10t", "regnetx_002"}
    for model in models:
        config = config_of(repository, model)
        assert config.name == model
        assert config.max_batch_size == 8
        assert config.HasField("dynamic_batching") == (not model.startswith("ensemble"))
    assert config_of(repository, "resnet10t").backend == "onnxruntime"


def test_every_member_reaches_the_voter(repository: Path) -> None:
    for model in ("ensemble", "ensemble_pixels"):
        steps = {step.model_name: step for step in config_of(repository, model).ensemble_scheduling.step}
        made = {member: next(iter(steps[member].output_map.values())) for member in ("resnet10t", "regnetx_002")}
        assert dict(steps["voter"].input_map) == {"LOGITS_0": made["resnet10t"], "LOGITS_1": made["regnetx_002"]}


def test_metadata_travels_and_clients_can_read_it(run: Run, repository: Path) -> None:
    ensemble = run.ensemble()
    assert read_ensemble(repository / "ensemble.json") == ensemble
    assert read_ensemble(repository / "voter" / "1" / "ensemble.json") == ensemble
    metadata = config_of(repository, "ensemble").parameters["contract"].string_value
    assert json.loads(metadata)["classes"][0] == "zero"


def test_graph_takes_any_batch_of_pixels(repository: Path) -> None:
    path = repository / "resnet10t" / "1" / "model.onnx"
    assert next(opset.version for opset in onnx.load(path).opset_import if not opset.domain) == 20
    session = onnxruntime.InferenceSession(path)
    assert [(tensor.name, tensor.type) for tensor in session.get_inputs()] == [("PIXELS", "tensor(uint8)")]
    for batch in (1, 2, 7):
        (logits,) = session.run(["LOGITS"], {"PIXELS": np.zeros((batch, 32, 32, 3), np.uint8)})
        assert logits.shape == (batch, 10)
        assert logits.dtype == np.float32


def test_parity_is_measured_on_real_validation_images(repository: Path) -> None:
    report = json.loads((repository / "parity.json").read_text())
    assert report["split"] == "validation"
    parities = {parity["subject"]: parity for parity in report["artefacts"]}
    assert {name: parity["images"] for name, parity in parities.items()} == {
        "resnet10t": 40,
        "regnetx_002": 40,
        "vote": 40,
    }
    assert all(0 < parity["max_difference"] <= 1e-4 for parity in parities.values())
    assert parities["vote"]["review_flips"] == 0


def test_a_second_export_of_the_same_has_nothing_to_do(run: Run, repository: Path) -> None:
    graph = repository / "resnet10t" / "1" / "model.onnx"
    made = graph.stat().st_mtime_ns
    exported = repository_from_run(run, repository, ExportSettings(max_batch_size=8, form="chain"))
    assert exported.unchanged
    assert graph.stat().st_mtime_ns == made
    assert [parity.subject for parity in exported.parities] == ["resnet10t", "regnetx_002", "vote"]


def test_a_changed_setting_vote_or_graph_requires_a_new_export(run: Run, repository: Path, tmp_path: Path) -> None:
    ensemble, settings = run.ensemble(), ExportSettings(max_batch_size=8, form="chain")
    assert is_current(repository, ensemble, settings)
    assert not is_current(repository, ensemble, settings.model_copy(update={"max_batch_size": 9}))
    calmer = ensemble.voting.model_copy(update={"temperature": 1.3})
    assert not is_current(repository, ensemble.model_copy(update={"voting": calmer}), settings)
    changed = shutil.copytree(repository, tmp_path / "changed")
    graph = changed / "resnet10t" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert not is_current(changed, ensemble, settings)
    shutil.copyfile(repository / "resnet10t" / "1" / "model.onnx", graph)
    assert is_current(changed, ensemble, settings)
    for needed in (graph, changed / "parity.json", changed / "regnetx_002" / "config.pbtxt"):
        kept = needed.read_bytes()
        needed.unlink()
        assert not is_current(changed, ensemble, settings)
        needed.write_bytes(kept)
    graph.unlink()
    assert not is_current(changed, ensemble, settings)
    assert not is_current(tmp_path / "nowhere", ensemble, settings)


def test_wrong_normalisation_is_refused_and_the_old_repository_stays(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = fresh_run.path / "model_repository"
    kept = out / "voter" / "config.pbtxt"
    kept.parent.mkdir(parents=True)
    kept.write_text("the old one")
    right = graphs_module.onnx_from_model

    def wrong(model: graphs_module.PixelModel, path: Path) -> None:
        shifted = model.image.model_copy(update={"mean": (0.5, 0.5, 0.5)})
        right(graphs_module.PixelModel(model.model, shifted), path)

    monkeypatch.setattr(selection, "onnx_from_model", wrong)
    with pytest.raises(ParityError, match=r"resnet10t differs from PyTorch.*up to.*Nothing was written"):
        repository_from_run(fresh_run, out, ExportSettings())
    assert kept.read_text() == "the old one"
    assert [path.name for path in fresh_run.path.glob(".model_repository*")] == []


def test_a_second_export_replaces_the_first_as_a_whole(run: Run, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    graphs = {name: repository / name / "1" / "model.onnx" for name in ("resnet10t", "regnetx_002")}
    repository_from_onnx(run.ensemble(), graphs, out)
    (out / "left_over").mkdir()
    repository_from_onnx(run.ensemble(), graphs, out)
    assert not (out / "left_over").exists()
    assert (out / "resnet10t" / "1" / "model.onnx").read_bytes() == graphs["resnet10t"].read_bytes()


def test_a_folder_that_holds_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty and not a model repository"):
        repository_from_run(run, tmp_path, ExportSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_that_was_edited_is_refused(fresh_run: Run) -> None:
    checkpoint = fresh_run.member_folder("resnet10t") / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"!")
    with pytest.raises(MetadataError, match="SHA-256 differs"):
        repository_from_run(fresh_run, fresh_run.path / "out", ExportSettings())
    assert not (fresh_run.path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run"),
        (["nowhere", "--images", "digits"], "--images: expected only with checkpoints"),
        (["nowhere", "--tolerance", "7"], "--tolerance: expected a number less than 1, got 7.0"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plurum: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in plurum.refused("export", *arguments)
    assert list(tmp_path.iterdir()) == []
