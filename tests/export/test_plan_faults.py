"""Checks of TensorRT plans: graph, size, TensorRT version and GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from plurum.export import doctor
from plurum.export.doctor import check_repository
from plurum.export.engines import plan_faults
from plurum.export.engines.build import RTX_MAGIC, EnginePlan
from plurum.export.manifest import ExportManifest, read_manifest
from plurum.files import sha256_of
from plurum.spec import write_metadata

MEMBER = "resnet10t"


def found(repository: Path) -> dict[tuple[str, str], str]:
    """Return the details of errors, by check and subject."""
    return {(one.check, one.subject): one.detail for one in check_repository(repository) if one.state == "error"}


def graph_of(repository: Path) -> Path:
    return repository / MEMBER / "1" / "model.onnx"


@pytest.fixture
def gpu_repository(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository whose member has a valid plan."""
    monkeypatch.setattr(plan_faults, "gpu_capability", lambda: "8.9")
    monkeypatch.setattr(plan_faults, "loaded_version", lambda: None)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "10.13.2.6")
    monkeypatch.setattr(doctor, "engine_from_onnx", lambda *_: None)
    path = shutil.copytree(repository, tmp_path / "gpu")
    manifest: ExportManifest = read_manifest(path)
    artefacts = tuple(
        one.model_copy(update={"backend": "tensorrt"}) if one.model == MEMBER else one for one in manifest.artefacts
    )
    write_metadata(path / "export.json", manifest.model_copy(update={"artefacts": artefacts, "target": "gpu"}))
    plan = graph_of(path).with_name("model.plan")
    # A plan as large as its weights.
    plan.write_bytes(b"a plan".ljust(graph_of(path).stat().st_size))
    about = EnginePlan(
        tensorrt="10.13.2",
        compute_capability="8.9",
        onnx_sha256=sha256_of(graph_of(path)),
        plan_sha256=sha256_of(plan),
        profile=(1, 4, 8),
    )
    write_metadata(plan.with_name("model.plan.json"), about)
    return path


def test_a_plan_that_fits_is_well(gpu_repository: Path) -> None:
    findings = {(one.check, one.subject): one for one in check_repository(gpu_repository)}
    for check in ("build", "plan", "plan's size", "plan's machine"):
        assert findings[check, MEMBER].state == "ok", findings[check, MEMBER].detail


@pytest.mark.parametrize(
    ("change", "check", "detail"),
    [
        ({"tensorrt": "10.9.0"}, "plan's machine", "built by TensorRT 10.9.0, Python's is 10.13.2.6: it will not load"),
        ({"compute_capability": "7.5"}, "plan's machine", "built for compute capability 7.5, this GPU has 8.9"),
        ({"onnx_sha256": "0" * 64}, "plan", "built from another graph"),
        ({"plan_sha256": "0" * 64}, "plan", "changed since it was built"),
        ({"profile": (1, 2, 4)}, "plan", "built for batches up to 4; config.pbtxt takes 8"),
    ],
)
def test_a_plan_that_does_not_fit(gpu_repository: Path, change: dict[str, object], check: str, detail: str) -> None:
    path = graph_of(gpu_repository).with_name("model.plan.json")
    about = EnginePlan.model_validate_json(path.read_bytes())
    write_metadata(path, about.model_copy(update=change))
    assert detail in found(gpu_repository)[check, MEMBER]


def test_a_plan_that_tritons_tensorrt_does_not_load(gpu_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of Python's TensorRT does not matter if Triton's is known."""
    monkeypatch.setattr(plan_faults, "loaded_version", lambda: "10.13.3")
    assert found(gpu_repository)["plan's machine", MEMBER] == (
        "built by TensorRT 10.13.2, Triton's is 10.13.3: it will not load; build it again"
    )


def weighing(megabytes: int, kind: int) -> onnx.ModelProto:
    """Return a graph with weights of this size."""
    width = 2 if kind == TensorProto.FLOAT16 else 4
    weight = helper.make_tensor(
        "weight", kind, [megabytes * 1_000_000 // width], bytes(megabytes * 1_000_000), raw=True
    )
    return helper.make_model(helper.make_graph([], "weighing", [], [], [weight]))


def test_a_plan_of_the_wrong_size() -> None:
    half, single = weighing(22, TensorProto.FLOAT16), weighing(44, TensorProto.FLOAT)
    assert plan_faults.size_faults(23_000_000, half) == []
    assert plan_faults.size_faults(45_000_000, single) == []
    # Kernels larger than the savings of FP16.
    assert plan_faults.size_faults(17_000_000, weighing(8, TensorProto.FLOAT16)) == []
    (fault,) = plan_faults.size_faults(45_000_000, half)
    assert fault.startswith("45.0 MB, and the graph's weights are 22.0 MB: as large as in FP32, 44.0 MB;")
    assert plan_faults.size_faults(15_000_000, half) == [
        "15.0 MB, and the graph's weights are 22.0 MB: it does not hold all of them"
    ]


def test_an_rtx_engine_in_a_repository(gpu_repository: Path) -> None:
    graph_of(gpu_repository).with_name("model.plan").write_bytes(RTX_MAGIC + b"...")
    assert "built by TensorRT-RTX, which Triton does not load" in found(gpu_repository)["plan", MEMBER]


def test_later_additions_are_no_fault(gpu_repository: Path) -> None:
    for name in ("timing.cache", "tuning.json", "tuning.csv", "tuning.png"):
        (gpu_repository / name).touch()
    compiled = gpu_repository / "voter" / "1" / "__pycache__"
    # Triton leaves one in a repository that was served.
    compiled.mkdir(exist_ok=True)
    (compiled / "voting.cpython-311.pyc").touch()
    assert found(gpu_repository) == {}
    # A repository for ONNX Runtime has no plan.
    (gpu_repository / "regnetx_002" / "1" / "model.plan").touch()
    assert found(gpu_repository) == {("leftovers", "gpu"): "regnetx_002/1/model.plan does not belong to this export"}
