"""What needs a GPU with TensorRT, inside the container that will serve: `pytest -m gpu tests/export/test_gpu.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from plurum.export import Budget, ExportSettings, build_engines, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.engines import read_plan
from plurum.export.settings import BUDGETS
from plurum.run import Run
from plurum.serving import Server, ServerSettings

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

# The shared run's members have hardly learnt: their answers turn at a touch.
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
        plan = read_plan(built / model / "1" / "model.plan")
        assert plan.profile == (1, 4, 8)
        # FP16: about half of the FP32 weights, and what a plan adds.
        assert (built / model / "1" / "model.plan").stat().st_size > 0
    findings = check_repository(built)
    assert [one for one in findings if one.state == "error"] == []
    assert {one.check for one in findings if one.state == "ok"} >= {"plan", "plan's machine"}


def test_a_second_build_is_quicker_by_the_timing_cache(built: Path) -> None:
    assert (built / "timing.cache").stat().st_size > 0


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
