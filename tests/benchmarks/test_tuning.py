"""Variants and repositories of `plurum tune`; real servers are in tests/cli/test_tune.py."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from plurum.benchmarks.tune import tuning
from plurum.benchmarks.tune.repository import Artefacts, read_artefacts, write_variant
from plurum.benchmarks.tune.space import batchings, forms, members, precisions, shapes
from plurum.benchmarks.tune.tuning import exports_from_run, tune
from plurum.benchmarks.tune.variant import AS_IS, Backend, Batching, Placement, Variant
from plurum.cli.main import app
from plurum.errors import ParityError, RepositoryError, SettingsError
from plurum.export import int8_from_onnx
from plurum.export.manifest import read_manifest
from plurum.export.repository.configs import fused_config, member_config, text_of
from plurum.export.settings import Execution
from plurum.run import Run
from plurum.serving.triton.staging import complete_config, read_config
from plurum.settings.benchmarks import TuneSettings
from plurum.spec import read_ensemble

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tuning.md"
BOTH: tuple[Backend, ...] = ("onnxruntime", "openvino")


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(2, 1), (1, 2)]),
        (6, [(6, 1), (3, 2), (1, 6)]),
        (64, [(16, 4), (8, 8), (4, 16), (2, 32), (1, 64)]),
    ],
)
def test_shapes_go_from_one_image_a_core_to_all_cores_on_one_image(cores: int, expected: list[tuple[int, int]]) -> None:
    assert shapes(cores) == expected


@pytest.mark.slow
def test_every_form_is_tried_in_every_shape_by_every_backend(repository: Path, fused: Path) -> None:
    found = forms(read_artefacts(AS_IS, fused), 2, BOTH)
    assert len(set(map(str, found))) == len(found) == (3 + 2) * 2
    assert "fused, 2 x 1 onnxruntime, batches of what waits" in map(str, found)
    # A share of the cores for each of two members.
    assert "chain, 1 x 1 openvino, batches of what waits" in map(str, found)
    chains = forms(read_artefacts(AS_IS, repository), 2, ("onnxruntime",))
    assert {one.form for one in chains} == {"chain"}
    assert len(chains) == 3


def test_the_other_stages_stay_around_the_best(fused: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    names = own.members
    best = Variant(
        form="chain", graphs={name: Placement(backend="onnxruntime", instances=2, threads=1) for name in names}
    )
    around = members(best, own, BOTH)
    assert len(around) == 2 * len(names)
    assert all(sum(one.graphs[name] != best.graphs[name] for name in names) == 1 for one in around)
    assert members(best, own, ("onnxruntime",)) == [one for one in around if "openvino" not in str(one)]
    assert members(best.model_copy(update={"form": "fused"}), own, BOTH) == []
    assert Batching(dynamic=False) in [one.batching for one in batchings(best, 8)]
    assert best.batching not in [one.batching for one in batchings(best, 8)]
    assert max(size for one in batchings(best, 4) for size in (*one.batching.preferred, 0)) == 4
    # The same graphs in one need not be tried again.
    again = precisions(best, own, [read_artefacts("bf16", fused)], 2)
    assert [(one.artefacts, one.form) for one in again] == [("bf16", "chain")]


def test_graphs_checked_on_one_backend_stay_on_it(fused: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    first, second = own.members
    assert own.backends[first] == BOTH
    links = tmp_path / "links"
    links.mkdir()
    write_variant(own, forms(own, 2, BOTH)[0], links, trial=False)
    image = own.ensemble.image
    int8_from_onnx(
        fused / first / "1" / "model.onnx",
        np.zeros((1, image.height, image.width, 3), np.uint8),
        links / first / "1" / "model.onnx",
    )
    config = links / second / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"onnxruntime"', '"openvino"')
        + 'parameters { key: "HINT_BF16" value { string_value: "YES" } }'
    )
    other = read_artefacts("int8", links)
    assert other.backends[first] == ("onnxruntime",)
    assert other.backends[second] == ("openvino",)
    assert (other.rounds(first), other.rounds(second)) == (False, True)
    assert other.fingerprint() != own.fingerprint()


@pytest.mark.slow
def test_other_precisions_come_through_exports_own_gate(
    run: Run, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The others take long, and the same way.
    monkeypatch.setattr(tuning, "_PRECISIONS", ("fp32", "bf16"))
    own = read_artefacts(AS_IS, repository)
    found, notes = exports_from_run(run, own, tmp_path, lambda _: None)
    names = {one.name for one in found}
    # FP32 has what the repository has and the fused form; BF16 has the same graphs on another backend.
    assert "fp32" in names
    assert names | {note.split(" ", 1)[0] for note in notes} == {"fp32", "bf16"}
    assert all("fused" in one.forms and one.max_batch_size == own.max_batch_size for one in found)
    again, _ = exports_from_run(run, read_artefacts(AS_IS, tmp_path / "exported-fp32"), tmp_path, lambda _: None)
    assert {one.name for one in again} == names - {"fp32"}
    monkeypatch.setattr(tuning, "_PRECISIONS", ("int8",))

    def refuse(*_: object) -> None:
        raise ParityError("int8 answers otherwise")

    monkeypatch.setattr(tuning, "repository_from_run", refuse)
    assert exports_from_run(run, own, tmp_path, lambda _: None) == ([], ["int8 was not tried: int8 answers otherwise"])


def served_as(folder: Path, model: str) -> Any:
    """A model's config as `plurum serve` completes it, on a machine of 16 cores."""
    config = read_config(folder / model)
    complete_config(config, 16, cpu_only=True)
    return config


def write(artefacts: Artefacts, one: Variant, folder: Path, *, trial: bool = False) -> Path:
    folder.mkdir()
    write_variant(artefacts, one, folder, trial=trial)
    return folder


def test_the_chosen_variant_is_written_to_the_configs(fused: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    first, second = own.members
    chain = Variant(
        form="chain",
        graphs={
            first: Placement(backend="openvino", instances=3, threads=2),
            second: Placement(backend="onnxruntime", instances=1, threads=5),
        },
        batching=Batching(preferred=(4,), delay_us=700),
    )
    tuned = write(own, chain, tmp_path / "chain")
    one, other = served_as(tuned, first), served_as(tuned, second)
    assert (one.backend, [group.count for group in one.instance_group]) == ("openvino", [3])
    assert {name: value.string_value for name, value in one.parameters.items()} == {"INFERENCE_NUM_THREADS": "2"}
    assert (other.backend, [group.count for group in other.instance_group]) == ("onnxruntime", [1])
    assert other.parameters["intra_op_thread_count"].string_value == "5"
    assert list(other.dynamic_batching.preferred_batch_size) == [4]
    assert other.dynamic_batching.max_queue_delay_microseconds == 700
    assert read_config(tuned / "ensemble") == read_config(fused / "ensemble")
    # Nobody asks it through `ensemble`.
    assert [group.count for group in served_as(tuned, "fused").instance_group] == [1]
    alone = write(own, chain.model_copy(update={"batching": Batching(dynamic=False)}), tmp_path / "alone")
    assert not served_as(alone, first).HasField("dynamic_batching")
    assert served_as(alone, "voter").HasField("dynamic_batching")
    # Read again, it can be tuned again.
    assert read_artefacts("again", tuned).backends[first] == ("openvino", "onnxruntime")


def test_the_fused_form_takes_the_public_names_and_gives_them_back(fused: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    placement = Placement(backend="onnxruntime", instances=2, threads=1)
    tuned = write(own, Variant(form="fused", graphs={"fused": placement}), tmp_path / "fused")
    before, after = (read_config(folder / "ensemble") for folder in (fused, tuned))
    assert [step.model_name for step in after.ensemble_scheduling.step] == ["preprocess", "fused", "labels"]
    pixels = read_config(tuned / "ensemble_pixels")
    assert [step.model_name for step in pixels.ensemble_scheduling.step] == ["fused", "labels"]
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    assert after.parameters["contract"] == before.parameters["contract"]
    back = Variant(form="chain", graphs=dict.fromkeys(own.members, placement))
    again = write(read_artefacts(AS_IS, tuned), back, tmp_path / "back")
    assert read_config(again / "ensemble") == before
    trial = write(own, back, tmp_path / "trial", trial=True)
    assert "fused" not in {path.name for path in trial.iterdir()}
    assert (trial / "voter" / "1").is_symlink()


def test_the_manifest_says_what_serves_a_graph_now(repository: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, repository)
    placement = Placement(backend="openvino", instances=1, threads=1)
    tuned = write(own, Variant(form="chain", graphs=dict.fromkeys(own.members, placement)), tmp_path / "tuned")
    assert {one.backend for one in read_manifest(repository).artefacts} == {"onnxruntime"}
    assert {one.backend for one in read_manifest(tuned).artefacts} == {"openvino"}


@pytest.fixture
def for_a_gpu(fused: Path, tmp_path: Path) -> Path:
    """The fused repository as `--target gpu` writes it, with something in place of plans."""
    folder = shutil.copytree(fused, tmp_path / "gpu")
    ensemble = read_ensemble(folder / "ensemble.json")
    for config in (
        *(member_config(member, 8, Execution("fp16", "tensorrt")) for member in ensemble.members),
        fused_config(ensemble, 8, "tensorrt"),
    ):
        (folder / config.name / "config.pbtxt").write_text(text_of(config))
        (folder / config.name / "1" / "model.plan").write_bytes(str(config.name).encode())
    return folder


def test_on_a_gpu_instances_forms_and_batches_are_tried(for_a_gpu: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, for_a_gpu)
    found = forms(own, 16, BOTH)
    assert sorted(map(str, found)) == sorted(
        f"{form}, {count} tensorrt, batches of what waits" for form in ("chain", "fused") for count in (1, 2, 4)
    )
    best = next(one for one in found if one.form == "chain" and "2 tensorrt" in str(one))
    first, second = own.members
    assert [str(one) for one in members(best, own, BOTH)] == [
        f"chain, {first} 1 tensorrt, {second} 2 tensorrt, batches of what waits",
        f"chain, {first} 2 tensorrt, {second} 1 tensorrt, batches of what waits",
    ]
    batched = best.model_copy(update={"batching": Batching(preferred=(4,), delay_us=2000)})
    tuned = write(own, batched, tmp_path / "tuned")
    for model in own.members:
        config = read_config(tuned / model)
        assert (config.platform, config.backend, config.optimization.cuda.graphs) == ("tensorrt_plan", "", True)
        (group,) = config.instance_group
        assert (group.kind, group.count) == (group.KIND_GPU, 2)
        assert not config.parameters
        assert list(config.dynamic_batching.preferred_batch_size) == [4]
        assert (tuned / model / "1" / "model.plan").read_bytes() == model.encode()
    # Nobody asks it in a chain.
    assert [group.count for group in read_config(tuned / "fused").instance_group] == [1]
    (tuned / first / "1" / "model.plan").write_bytes(b"another")
    assert read_artefacts(AS_IS, tuned).fingerprint() != read_artefacts(AS_IS, for_a_gpu).fingerprint()


def test_on_a_gpu_there_is_no_other_precision(run: Run, for_a_gpu: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is for a GPU, which has no other precisions to try; leave out --run"):
        tune(for_a_gpu, tmp_path / "tuned", run, TuneSettings())
    assert not (tmp_path / "tuned").exists()


def test_repositories_that_cannot_be_tuned_give_one_line(fused: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="does not exist"):
        read_artefacts(AS_IS, tmp_path / "absent")
    own = read_artefacts(AS_IS, fused)
    other = write(own, forms(own, 2, BOTH)[0], tmp_path / "other")
    (other / "fused" / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"fused/1/model\.onnx is missing; export the run again"):
        read_artefacts(AS_IS, other)
    (other / "fused" / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    with pytest.raises(RepositoryError, match=r"model\.plan is missing; build it with plurum export --build-engines"):
        read_artefacts(AS_IS, other)
    (other / "fused" / "config.pbtxt").write_text('backend: "pytorch"')
    with pytest.raises(RepositoryError, match="backends onnxruntime, openvino, tensorrt, got pytorch"):
        read_artefacts(AS_IS, other)
    (other / "ensemble.json").unlink()
    with pytest.raises(RepositoryError, match="is not a model repository; plurum export"):
        read_artefacts(AS_IS, other)


def test_the_pages_commands_can_be_given_and_its_picture_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for picture in re.findall(r"\((images/.*?\.png)\)", text):
        assert (PAGE.parent / picture).is_file()
    commands = [shlex.split(command) for command in re.findall(r"```sh\n(plurum .*?)\n```", text, flags=re.DOTALL)]
    assert ["--check" in words for words in commands] == [False, True]
    for words in commands:
        # Parsed, not run.
        context = get_command(app).make_context(words[0], words[1:])
        get_command(app).get_command(context, "tune").make_context("tune", words[2:])  # type: ignore[attr-defined]
