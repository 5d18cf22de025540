"""`plurum tune` keeps a cascade: it changes how its stages are run, never that they are."""

from __future__ import annotations

from pathlib import Path

from plurum.benchmarks.tune.repository import read_artefacts, write_variant
from plurum.benchmarks.tune.space import forms
from plurum.benchmarks.tune.variant import AS_IS
from plurum.export import repository_from_onnx
from plurum.serving.triton.staging import read_config
from tests.cascades.linear_cascade import ENSEMBLES, write_members
from tests.cascades.stage_models import write_stage_models


def test_a_variant_runs_the_stages_by_another_library(tmp_path: Path) -> None:
    ensemble = ENSEMBLES["one, then all"]
    repository_from_onnx(ensemble, write_members(tmp_path, ensemble), tmp_path / "repository", 8)
    artefacts = read_artefacts(AS_IS, tmp_path / "repository")
    assert artefacts.forms == ("fused",)
    variants = forms(artefacts, 2, ["onnxruntime", "openvino"])
    assert {one.form for one in variants} == {"fused"}
    taken = next(one for one in variants if one.graphs["fused"].backend == "openvino")
    (tmp_path / "tuned").mkdir()
    write_variant(artefacts, taken, tmp_path / "tuned", trial=False)
    config = read_config(tmp_path / "tuned" / "fused")
    assert config.backend == "openvino"
    assert config.parameters["stages"].string_value == "stage_0.onnx stage_1.onnx"
    assert (tmp_path / "tuned" / "fused" / "1" / "stage_1.onnx").is_file()
    for name in ("ensemble", "ensemble_pixels", "ensemble_fused"):
        assert read_config(tmp_path / "tuned" / name) == artefacts.configs[name]


def test_stages_that_are_models_are_tuned_each(tmp_path: Path) -> None:
    ensemble = ENSEMBLES["one, then all"]
    repository = write_stage_models(ensemble, write_members(tmp_path, ensemble), tmp_path / "repository")
    artefacts = read_artefacts(AS_IS, repository)
    variant = forms(artefacts, 2, ["onnxruntime"])[0]
    assert set(variant.graphs) == {"stage_0", "stage_1"}
    (tmp_path / "tuned").mkdir()
    write_variant(artefacts, variant, tmp_path / "tuned", trial=False)
    for model, placement in variant.graphs.items():
        (group,) = read_config(tmp_path / "tuned" / model).instance_group
        assert group.count == placement.instances
    assert read_config(tmp_path / "tuned" / "fused") == artefacts.configs["fused"]
