"""What Triton is given of a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from plurum.errors import RepositoryError
from plurum.repository.listing import model_folders
from plurum.serving.triton.staging import StagedRepository, are_complete, read_config, stage

NAMING = Path(__file__).resolve().parents[3] / "model_repository" / "labels" / "labels.py"


def write_model(repository: Path, name: str, config: str) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"graph")
    (repository / name / "config.pbtxt").write_text(config)
    return version


def filled(tmp_path: Path, config: str, cores: int, *, name: str = "member", cpu_only: bool = True) -> tuple[int, str]:
    """Return how many instances and threads a staged model has, 0 and '' where Triton is left to decide."""
    write_model(tmp_path / "repository", name, config)
    (config_of,) = stage(tmp_path / "repository", tmp_path / "staged", cores, cpu_only=cpu_only)
    written: Any = text_format.Parse(
        (tmp_path / "staged" / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    assert written == config_of
    key = "intra_op_thread_count"
    return sum(group.count for group in written.instance_group), (
        written.parameters[key].string_value if key in written.parameters else ""
    )


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, (1, "1")), (2, (2, "1")), (4, (4, "1")), (8, (4, "2")), (30, (4, "7"))]
)
def test_members_share_the_cores(tmp_path: Path, cores: int, expected: tuple[int, str]) -> None:
    assert filled(tmp_path, 'backend: "onnxruntime"', cores) == expected


def test_openvino_members_share_the_cores(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "member", 'backend: "openvino"')
    (config,) = stage(tmp_path / "repository", tmp_path / "staged", 8, cpu_only=False)
    assert sum(group.count for group in config.instance_group) == 4
    assert config.parameters["INFERENCE_NUM_THREADS"].string_value == "2"


def test_openvino_members_use_the_python_backend_on_every_triton(tmp_path: Path) -> None:
    version = write_model(tmp_path / "repository", "member", 'backend: "openvino" default_model_filename: "model.onnx"')
    (config,) = stage(tmp_path / "repository", tmp_path / "staged", 2, cpu_only=True)
    staged = tmp_path / "staged" / "member" / "1"
    assert (config.backend, config.default_model_filename) == ("python", "")
    assert config.parameters["graph"].string_value == "model.onnx"
    assert (staged / "model.onnx").read_bytes() == b"graph"
    assert "OpenVINO" in (staged / "model.py").read_text(encoding="utf-8")
    # The repository stays as it was.
    assert [path.name for path in version.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("backend", "names", "folded"),
    [
        ("openvino", NAMING.read_text(encoding="utf-8"), True),
        ("onnxruntime", NAMING.read_text(encoding="utf-8"), False),
        # Who exported it long ago has another one, which our model does not know how to ask.
        ("openvino", "# names of before", False),
    ],
    ids=["ours", "not by OpenVINO", "of before"],
)
def test_openvino_fused_graphs_output_labels_themselves(tmp_path: Path, backend: str, names: str, folded: bool) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "fused", f'backend: "{backend}" output {{ name: "INDEX" data_type: TYPE_INT32 dims: 1 }}')
    labels = write_model(
        repository, "labels", 'backend: "python" output { name: "LABEL" data_type: TYPE_STRING dims: 1 }'
    )
    (labels / "labels.py").write_text(names, encoding="utf-8")
    steps = (
        'step { model_name: "fused" input_map { key: "PIXELS" value: "PIXELS" }'
        ' output_map { key: "INDEX" value: "fused_INDEX" } }'
        'step { model_name: "labels" input_map { key: "INDEX" value: "fused_INDEX" }'
        ' output_map { key: "LABEL" value: "LABEL" } }'
    )
    write_model(repository, "ensemble", f'platform: "ensemble" ensemble_scheduling {{ {steps} }}')
    configs = {one.name: one for one in stage(repository, tmp_path / "staged", 2, cpu_only=True, tag="abc")}
    assert ("labels-abc" in configs) is not folded
    assert (tmp_path / "staged" / "labels-abc").exists() is not folded
    step, *others = configs["ensemble-abc"].ensemble_scheduling.step
    assert step.model_name == "fused-abc"
    assert len(others) == (0 if folded else 1)
    assert dict(step.output_map) == ({"LABEL": "LABEL"} if folded else {"INDEX": "fused_INDEX"})
    assert [one.name for one in configs["fused-abc"].output] == ["LABEL" if folded else "INDEX"]
    assert (tmp_path / "staged" / "fused-abc" / "1" / "labels.py").is_file() is folded


def test_stated_instances_are_kept(tmp_path: Path) -> None:
    config = 'backend: "onnxruntime" instance_group { count: 1 } instance_group { count: 1 kind: KIND_CPU }'
    assert filled(tmp_path, config, 8) == (2, "4")


def test_stated_threads_are_kept(tmp_path: Path) -> None:
    config = 'backend: "onnxruntime" parameters { key: "intra_op_thread_count" value { string_value: "3" } }'
    assert filled(tmp_path, config, 4) == (1, "3")


@pytest.mark.parametrize(
    ("name", "config", "cores", "expected"),
    [
        ("fused", "", 2, "2"),
        ("fused", "", 9, "8"),
        ("fused", "", 1, None),
        # An instance that computes alone takes what the config allots to all of them.
        (
            "fused",
            'instance_group { count: 2 } parameters { key: "intra_op_thread_count" value { string_value: "3" } }',
            16,
            "6",
        ),
        ("fused", "instance_group { count: 1 }", 8, None),
        ("member", "", 8, None),
    ],
)
def test_a_fused_graphs_instance_may_use_the_threads_of_all(
    tmp_path: Path, name: str, config: str, cores: int, expected: str | None
) -> None:
    write_model(tmp_path / "repository", name, f'backend: "onnxruntime" {config}')
    (written,) = stage(tmp_path / "repository", tmp_path / "staged", cores, cpu_only=True)
    parameters = {key: one.string_value for key, one in written.parameters.items()}
    assert parameters.get("threads_alone") == expected


def test_on_a_gpu_triton_places_members(tmp_path: Path) -> None:
    assert filled(tmp_path, 'backend: "onnxruntime"', 8, cpu_only=False) == (0, "")


@pytest.mark.parametrize(
    ("name", "config", "instances"),
    [
        ("preprocess", 'backend: "python"', 3),
        ("preprocess", 'backend: "python" instance_group { count: 1 }', 1),
        ("voter", 'backend: "python"', 0),
        ("ensemble", 'platform: "ensemble"', 0),
    ],
)
def test_other_models_get_their_number_of_instances(tmp_path: Path, name: str, config: str, instances: int) -> None:
    assert filled(tmp_path, config, 3, name=name) == (instances, "")


def test_staging_links_to_the_repository_and_leaves_it_unchanged(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    version = write_model(repository, "member", 'backend: "onnxruntime"')
    (repository / "ensemble.json").write_text("{}")
    (repository / "report").mkdir()
    (repository / ".new" / "1").mkdir(parents=True)
    (repository / ".new" / "config.pbtxt").write_text("half-writ")
    stage(repository, tmp_path / "staged", 2, cpu_only=True)
    assert {path.name for path in (tmp_path / "staged").iterdir()} == {"member", "ensemble.json"}
    assert (tmp_path / "staged" / "member" / "1").readlink() == version
    assert (repository / "member" / "config.pbtxt").read_text() == 'backend: "onnxruntime"'


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"absent: expected a model repository folder, got nothing"):
        model_folders(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file: expected a model repository folder, got a file"):
        model_folders(tmp_path / "file")
    (tmp_path / "something").mkdir()
    with pytest.raises(
        RepositoryError, match=r"no folder in it has a config\.pbtxt\. Create one with: plurum export RUN"
    ):
        model_folders(tmp_path)


def test_an_invalid_config_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "member", "max_batch_sice: 3")
    with pytest.raises(RepositoryError, match=r"member/config\.pbtxt is not a model configuration: .*max_batch_sice"):
        read_config(tmp_path / "member")


def test_configs_with_inputs_and_outputs_are_complete(tmp_path: Path) -> None:
    whole = 'input { name: "A" } output { name: "B" }'
    write_model(tmp_path, "whole", whole)
    write_model(tmp_path, "half", 'input { name: "A" }')
    assert are_complete([read_config(tmp_path / "whole")])
    assert not are_complete([read_config(tmp_path / name) for name in ("whole", "half")])


def test_a_failed_staging_of_a_release_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "a", 'backend: "python"')
    write_model(tmp_path / "repository", "b", "backend: ")
    staged = StagedRepository(tmp_path / "staged", 2, cpu_only=True)
    for _ in range(2):
        with pytest.raises(RepositoryError, match="is not a model configuration"):
            staged.add(tmp_path / "repository", "tag")
        staged.remove("tag")
        assert list(staged.folder.iterdir()) == []


def test_ensembles_have_no_instance_and_other_models_at_least_one(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "chain", "ensemble_scheduling { step { model_name: 'voter' } }")
    write_model(tmp_path / "repository", "voter", 'backend: "python"')
    write_model(tmp_path / "repository", "member", 'backend: "onnxruntime"')
    staged = StagedRepository(tmp_path / "staged", 2, cpu_only=True)
    staged.add(tmp_path / "repository")
    assert {name: staged.instances(name) for name in staged.configs} == {"chain": 0, "member": 2, "voter": 1}
    # A rollout may remove what the supervisor is just looking at.
    assert staged.instances("gone") == 0
