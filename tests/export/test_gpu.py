"""Tests on a GPU with TensorRT, inside the container that will serve: `pytest -m gpu tests/export/test_gpu.py`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from plurum.errors import RepositoryError
from plurum.export import Budget, ExportSettings, build_engines, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.engines import nvinfer
from plurum.export.engines.build import gpu_capability, plan_from_onnx, read_plan
from plurum.export.engines.nvinfer import is_same_tensorrt, loaded_version
from plurum.export.settings import BUDGETS
from plurum.files import sha256_of
from plurum.run import Run
from plurum.serving import Server, ServerSettings

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

# The shared run's members have hardly learnt, so small changes flip their predictions.
LOOSE = Budget(max_difference=0.05, flips=0.1, accuracy_loss=0.1, nll_increase=0.1, ece_increase=0.1, review_flips=0.2)


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "model_repository"
    budgets = {**BUDGETS, "fp16": LOOSE}
    settings = ExportSettings(target="gpu", precision="fp16", fused=True, max_batch_size=8, budgets=budgets)
    repository_from_run(run, out, settings)
    build_engines(out)
    return out


def test_every_plan_has_its_manifest_and_the_doctor_agrees(built: Path) -> None:
    for model in ("resnet10t", "regnetx_002", "fused"):
        graph = built / model / "1" / "model.onnx"
        plan = read_plan(graph.with_name("model.plan"))
        assert plan.profile == (1, 4, 8)
        assert plan.onnx_sha256 == sha256_of(graph)
        assert plan.plan_sha256 == sha256_of(graph.with_name("model.plan"))
        assert plan.compute_capability == gpu_capability()
        # Triton's TensorRT, if installed here, has the builder's version.
        assert is_same_tensorrt(plan.tensorrt, loaded_version() or plan.tensorrt)
    findings = check_repository(built)
    assert [one for one in findings if one.state == "error"] == []
    assert {one.check for one in findings if one.state == "ok"} >= {"plan", "plan's size", "plan's machine", "files"}


def test_a_plan_in_fp16_is_about_half_of_one_in_fp32(built: Path, repository: Path, tmp_path: Path) -> None:
    for model in ("resnet10t", "regnetx_002"):
        single = plan_from_onnx(repository / model / "1" / "model.onnx", 8, tmp_path / f"{model}.plan")
        assert single.profile == (1, 4, 8)
        sizes = [path.stat().st_size for path in (built / model / "1" / "model.plan", tmp_path / f"{model}.plan")]
        assert 0.4 < sizes[0] / sizes[1] < 0.7


def test_a_second_build_is_quicker_by_the_timing_cache(built: Path, tmp_path: Path) -> None:
    """The timing cache of the first build saves time in the second."""
    graph, cache = built / "fused" / "1" / "model.onnx", built / "timing.cache"
    kept = cache.read_bytes()
    took = {}
    for name, timed in (("again", cache), ("afresh", tmp_path / "timing.cache")):
        start = time.perf_counter()
        plan_from_onnx(graph, 8, tmp_path / f"{name}.plan", timed)
        took[name] = time.perf_counter() - start
    assert took["again"] < took["afresh"]
    # The second build adds nothing to the cache.
    assert len(cache.read_bytes()) == pytest.approx(len(kept), rel=0.01)


def test_a_plan_of_another_version_is_not_built(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvinfer, "loaded_version", lambda: "9.9.9")
    with pytest.raises(RepositoryError, match=r"Triton loads 9\.9\.9"):
        plan_from_onnx(built / "resnet10t" / "1" / "model.onnx", 8, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.triton
@pytest.mark.skipif(shutil.which("tritonserver") is None, reason="the server of the wheel has no TensorRT backend")
@pytest.mark.parametrize("model", ["ensemble_pixels", "ensemble_fused"])
def test_served_answers_are_pytorchs(built: Path, repository: Path, run: Run, model: str) -> None:
    pixels = np.ascontiguousarray(run.pixels()[40:48])
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answers = []
    for place, asked in ((repository, "ensemble_pixels"), (built, model)):
        with (
            Server(place, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
            tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client,
        ):
            answers.append(client.infer(asked, [tensor]).as_numpy("PROBABILITIES"))
    parity = json.loads((built / "parity.json").read_text())["artefacts"]
    assert np.abs(answers[0] - answers[1]).max() <= max(one["max_difference"] for one in parity) + 0.02
