"""Untrusted checkpoints: which weights are used; everything else is refused in one line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from plurum.errors import MetadataError, SettingsError
from plurum.models import model_from_tensors
from plurum.state_dicts import read_state_dict
from tests.checkpoint_garbage import Planted, garbage
from tests.cli.command_line import CommandLine

ARCH = "test_resnet"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Tensors:
    torch.manual_seed(0)
    return dict(timm.create_model(ARCH, num_classes=2).state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "best.pt"


def negated(weights: Tensors) -> Tensors:
    return {name: -value for name, value in weights.items()}


def prefixed(weights: Tensors, prefix: str) -> Tensors:
    return {prefix + name: value for name, value in weights.items()}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("averaged", "raw"), [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("state_dict_ema", "model")]
)
def test_averaged_weights_are_taken_as_timm_takes_them_and_said(
    file: Path, weights: Tensors, averaged: str, raw: str
) -> None:
    options = argparse.Namespace(model=ARCH, lr=0.1)
    torch.save(
        {"epoch": 3, raw: weights, averaged: negated(weights), "args": options, "optimizer": {"state": {}}}, file
    )
    state = read_state_dict(file)
    assert same(state.tensors, negated(weights))
    assert same(state.tensors, timm.models.load_state_dict(str(file)))
    assert state.note == f"used the averaged weights (EMA) under '{averaged}', not those under '{raw}'"


def test_a_training_without_an_average_has_its_weights_taken(file: Path, weights: Tensors) -> None:
    torch.save({"state_dict": weights, "state_dict_ema": None}, file)
    state = read_state_dict(file)
    assert same(state.tensors, weights)
    assert state.note == ""
    torch.save({"model": {"state_dict": weights}}, file)
    assert same(read_state_dict(file).tensors, weights)


def test_weights_that_are_left_are_named_whatever_they_are_called(file: Path, weights: Tensors) -> None:
    torch.save({"model": weights, "teacher": negated(weights), "optimizer": {"state": {0: weights}}, "ema": 0.99}, file)
    state = read_state_dict(file)
    assert same(state.tensors, weights)
    assert state.note == "used the weights under 'model', not those under 'teacher'"


def test_the_average_of_torchvision_and_of_pytorch_is_read(file: Path, weights: Tensors) -> None:
    averaged = {"n_averaged": torch.tensor(7)} | prefixed(negated(weights), "module.")
    torch.save({"model": weights, "model_ema": averaged}, file)
    assert same(read_state_dict(file).tensors, negated(weights))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.net.",
        "model.backbone.",
    ],
)
def test_prefixes_of_wrappers_are_removed(file: Path, weights: Tensors, prefix: str) -> None:
    torch.save({"state_dict": prefixed(weights, prefix)}, file)
    assert same(read_state_dict(file).tensors, weights)
    save_file(prefixed(weights, prefix), file)
    assert same(read_state_dict(file).tensors, weights)


def test_a_prefix_that_not_all_names_have_stays(file: Path, weights: Tensors) -> None:
    torch.save(prefixed(weights, "model.") | {"criterion.weight": torch.ones(2)}, file)
    state = read_state_dict(file)
    assert "model.conv1.0.weight" in state.tensors
    with pytest.raises(
        MetadataError, match=r"does not fit .*: of \d+ tensors, \d+ missing \(conv1\.0\.weight, .*, …\)"
    ):
        model_from_tensors(file, state.tensors, ARCH, 2)


def test_the_first_format_of_pytorch_is_read(file: Path, weights: Tensors) -> None:
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    assert same(read_state_dict(file).tensors, weights)


def test_names_do_not_say_what_a_file_holds(tmp_path: Path, weights: Tensors) -> None:
    save_file(weights, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert same(read_state_dict(tmp_path / name).tensors, weights)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (float("nan"), "2 NaN and 0 infinite values, of 96"),
        (float("inf"), "0 NaN and 2 infinite"),
        (1e300, "0 NaN and 2"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_are_not_finite_are_told_as_such(
    tmp_path: Path, weights: Tensors, value: float, count: str, suffix: str
) -> None:
    name = next(name for name, tensor in weights.items() if tensor.shape == (96,) and tensor.is_floating_point())
    broken = weights[name].double()
    broken[:2] = value
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(weights | {name: broken}, path)
    with pytest.raises(MetadataError, match=rf"weights that are not finite: '{name}' holds {count}"):
        read_state_dict(path)


def test_garbage_gives_one_line_and_no_code_runs(weights: Tensors, tmp_path: Path, plurum: CommandLine) -> None:
    planted, file = tmp_path / "planted", tmp_path / "weights.pt"
    words = [file, "--arch", ARCH, "--classes", "CE,LAA", "--out", tmp_path / "out"]
    for name, content in garbage(weights, planted).items():
        file.write_bytes(content)
        code, _, error = plurum.ended("export", *words)
        assert (name, code, error.count("\n")) == (name, 2, 1)
        assert str(file) in error, name
        assert len(error) < 400 + len(str(file)), name
        # The message does not mention the temporary copy.
        assert "checkpoint.safetensors" not in error, name
        assert not planted.exists(), name
        assert not (tmp_path / "out").exists(), name


def test_the_planted_code_would_run_where_it_is_trusted(tmp_path: Path) -> None:
    torch.save(Planted(tmp_path / "planted"), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "planted").read_text() == "run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)},
            r"it has 7 classes \(fc\.weight is \[7, 96\]\); expected 2",
        ),
        ({"conv1.0.weight": None}, r"of \d+ tensors, 1 missing \(conv1\.0\.weight\)$"),
        ({"head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}, r"2 unexpected \(head\.weight, head\.bias\)$"),
        ({"fc.weight": torch.zeros(2, 5)}, r"1 with another shape \(fc\.weight: \[2, 5\], not \[2, 96\]\)$"),
        (
            {"fc.weight": torch.zeros(2, 96, dtype=torch.int8)},
            r"1 with another type \(fc\.weight: torch\.int8, not torch\.float32\)$",
        ),
    ],
)
def test_weights_that_do_not_fit_give_one_line(
    file: Path, weights: Tensors, change: dict[str, torch.Tensor | None], message: str
) -> None:
    torch.save({name: value for name, value in (weights | change).items() if value is not None}, file)
    state = read_state_dict(file)
    with pytest.raises(MetadataError, match=message) as caught:
        model_from_tensors(file, state.tensors, ARCH, 2)
    assert str(caught.value).startswith(f"{file} does not fit the architecture {ARCH!r}: ")
    assert "\n" not in str(caught.value)


def test_a_stem_for_grey_images_is_named(file: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=2, in_chans=1).state_dict(), file)
    with pytest.raises(
        MetadataError, match=r"its first layer takes 1 channels \(conv1\.0\.weight is \[24, 1, 3, 3\]\), but images"
    ):
        model_from_tensors(file, read_state_dict(file).tensors, "resnet10t", 2)


def test_counters_of_old_pytorch_may_be_missing(file: Path, weights: Tensors) -> None:
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(weights)
    model = model_from_tensors(file, old, ARCH, 2)
    assert not model.training


@pytest.mark.parametrize("arch", ["nowhere", "hf-hub:somebody/something", "local-dir:/tmp", "resnet18.nothing"])
def test_architectures_are_timms_own(file: Path, arch: str) -> None:
    with pytest.raises(SettingsError, match=r"timm (has no architecture|can't make)"):
        model_from_tensors(file, {}, arch, 2)
