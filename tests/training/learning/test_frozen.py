"""Frozen backbones: only the stated layers learn, and features are computed once, whatever interrupts them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from plurum.errors import OutputError, SettingsError
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.settings.options import settings_from
from plurum.settings.training import TrainSettings
from plurum.training import Examples, TrainOptions, train_run
from plurum.training.learning import feature_cache, frozen
from plurum.training.learning.distributed import ProcessGroup
from plurum.training.learning.feature_cache import compute_features
from plurum.training.learning.frozen import FrozenBackbone, freeze_layers
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import softmax

KEY = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of cached features, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plurum" / "features"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images of each batch whose features are computed."""
    batches: list[int] = []
    images = frozen._images

    def count(examples: Examples, settings: TrainSettings, rows: Any, number: int | None) -> torch.Tensor:
        batches.append(len(rows))
        return images(examples, settings, rows, number)

    monkeypatch.setattr(frozen, "_images", count)
    return batches


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a small model of timm in a folder; it has learnt nothing, so that features are random projections."""
    folder = tmp_path_factory.mktemp("foundation") / "tiny"
    torch.manual_seed(3)
    timm.models.save_for_hf(timm.create_model("test_resnet"), str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def settings_for(arch: str, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "archs": (arch,), "pretrained": True, "freeze": True, "epochs": 3, "batch_size": 16, "image_size": 32,
        "learning_rate": 1e-2, "precision": "fp32",
    }  # fmt: skip
    return settings_from(TrainSettings, **(values | changes))


def test_the_head_alone_learns_and_the_member_is_an_ordinary_one(
    foundation: str, archive: Path, tmp_path: Path, counted: list[int], cache: Path
) -> None:
    run = Run(tmp_path / "run")
    training = train_run(str(archive), settings_for(foundation, seeds=2, epochs=6), run.path)
    one, two = training.members
    saved = load_file(Path(foundation.removeprefix("local-dir:")) / "model.safetensors")
    weights = [load_file(run.checkpoint(member)) for member in (one, two)]
    for name, tensor in saved.items():
        if not name.startswith("fc."):
            assert all(torch.equal(found[name], tensor) for found in weights), name
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])
    # Both share the features; each image has one.
    examples = Examples.of(run)
    assert sum(counted) == len(examples.train) + len(examples.validation)
    assert len(list(cache.iterdir())) == 1
    # The scores are those of the whole model, as it will be served.
    model = model_from_checkpoint(one, run.checkpoint(one))
    logits = predict_logits(model, examples.pixels, examples.validation, examples.image)
    scores = compute_scores(softmax(logits), examples.labels[examples.validation])
    assert one.validation is not None
    assert scores.nll == pytest.approx(one.validation.nll, abs=1e-5)
    assert scores.accuracy > 1.5 / examples.classes, "the head has learnt nothing"
    assert one.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_an_interrupted_training_resumes_without_computing_features_again(
    foundation: str, archive: Path, tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(foundation, views=2)
    whole = train_run(str(archive), settings, tmp_path / "whole").members[0].sha256
    batches = len(counted)
    for file in (tmp_path / "cache" / "plurum" / "features").iterdir():
        file.unlink()
    counted.clear()
    count = frozen._images

    def stop(examples: Examples, given: TrainSettings, rows: Any, number: int | None) -> torch.Tensor:
        if len(counted) == 3:
            raise KeyboardInterrupt
        return count(examples, given, rows, number)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_images", stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(str(archive), settings, tmp_path / "run")
    assert train_run(str(archive), settings, tmp_path / "run").members[0].sha256 == whole
    assert len(counted) == batches


def test_views_are_the_image_itself_and_augmented_ones(foundation: str, archive: Path, tmp_path: Path) -> None:
    settings = settings_for(foundation, views=3, shift=0.2, noise=0.05)
    run = Run(tmp_path / "run")
    train_run(str(archive), settings, run.path)
    examples = Examples.of(run)
    backbone = FrozenBackbone(timm.create_model("test_resnet", num_classes=examples.classes))
    found = backbone.examples(examples, settings, lambda _count, _note: None)
    plain = backbone.examples(examples, settings_for(foundation), lambda _count, _note: None)
    rows = examples.train
    views = [found.select(rows, np.full(len(rows), view)) for view in range(3)]
    assert torch.equal(views[0], plain.select(rows))
    assert torch.equal(found.select(examples.validation), plain.select(examples.validation))
    assert all(not torch.equal(views[one], views[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    # A version of an image resembles the image more than another image does.
    distances = [(views[1] - views[0].roll(shift, 0)).norm(dim=1).mean() for shift in (0, 1)]
    assert distances[0] < distances[1]


def test_members_of_folds_share_features(
    foundation: str, archive: Path, tmp_path: Path, counted: list[int], cache: Path
) -> None:
    settings = settings_for(foundation, folds=2, certification=0.3, views=2, noise=0.05)
    run = Run(tmp_path / "run")
    assert len(train_run(str(archive), settings, run.path).members) == 2
    # Each image is learnt by one of the members, so that it has two versions.
    assert sum(counted) == 2 * len(run.table().rows("train"))
    assert len(list(cache.iterdir())) == 1
    one, two = (Examples.of(run, fold) for fold in (1, 2))
    backbone = FrozenBackbone(timm.create_model("test_resnet", num_classes=one.classes))
    found = [backbone.examples(part, settings, lambda _count, _note: None) for part in (one, two)]
    for rows, views in ((one.train, 1), (one.train, 0), (two.train, 1)):
        features = [part.select(rows, np.full(len(rows), views)) for part in found]
        assert torch.equal(*features)
    assert not torch.equal(found[0].select(one.train), found[0].select(one.train, np.ones(len(one.train), int)))


def test_members_in_parallel_share_features(foundation: str, archive: Path, tmp_path: Path, cache: Path) -> None:
    settings = settings_for(foundation, seeds=2)
    apart = train_run(str(archive), settings, tmp_path / "apart")
    for file in cache.iterdir():
        file.unlink()
    together = train_run(str(archive), settings, tmp_path / "together", TrainOptions(jobs=2))
    assert len(list(cache.iterdir())) == 1
    assert [member.sha256 for member in apart.members] == [member.sha256 for member in together.members]


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_byobnet"])
def test_the_last_layers_learn_and_the_others_keep_their_statistics(
    arch: str, archive: Path, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "tiny"
    timm.models.save_for_hf(timm.create_model(arch), str(folder), safe_serialization=True)
    side = 160 if arch == "test_vit" else 32
    settings = settings_for(f"local-dir:{folder}", unfreeze_last=1, epochs=1, image_size=side)
    run = Run(tmp_path / "run")
    (member,) = train_run(str(archive), settings, run.path).members
    before, after = load_file(folder / "model.safetensors"), load_file(run.checkpoint(member))
    same = {name: torch.equal(before[name], after[name]) for name in before if before[name].shape == after[name].shape}
    model = timm.create_model(arch)
    freeze_layers(model, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, is_same in same.items() if not is_same} >= {name for name in trained if name in same}
    frozen_modules = {name.rpartition(".")[0] for name in same} - {name.rpartition(".")[0] for name in trained}
    assert frozen_modules
    for name, is_same in same.items():
        if name.rpartition(".")[0] in frozen_modules:
            assert is_same, name
    assert not cache.exists()


def test_more_layers_than_a_model_has_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"--unfreeze-last: expected at most \d+, got 1000"):
        freeze_layers(timm.create_model("test_resnet"), 1000)
    with pytest.raises(SettingsError, match="--unfreeze-last: expected an architecture whose layers timm lists"):
        freeze_layers(torch.nn.Linear(2, 2), 1)


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model("test_resnet", num_classes=2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(images) / 2
            return logits

    image = settings_image()
    FrozenBackbone(timm.create_model("test_resnet", num_classes=2)).check(image)
    with pytest.raises(SettingsError, match=r"--freeze: .* changes what its last linear layer returns. Add --unfreeze"):
        FrozenBackbone(Halved()).check(image)
    with pytest.raises(SettingsError, match=r"--freeze: .* no linear layer"):
        FrozenBackbone(torch.nn.Conv2d(3, 3, 1))


def settings_image() -> Any:
    from plurum.spec import ImageSpec

    return ImageSpec(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1))


def test_several_processes_are_refused(
    foundation: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def join() -> Iterator[ProcessGroup]:
        yield ProcessGroup(0, 2)

    monkeypatch.setattr(ProcessGroup, "broadcast", lambda _, value: value)
    monkeypatch.setattr("plurum.training.learning.distributed.join_processes", join)
    with pytest.raises(SettingsError, match="--freeze: can't be combined with torchrun"):
        train_run(str(archive), settings_for(foundation), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": False}, "--freeze: expected --pretrained"),
        ({"freeze": False, "views": 2}, "can be used only with --freeze"),
        ({"freeze": False, "unfreeze_last": 1}, "can be used only with --freeze"),
        ({"unfreeze_last": 1, "views": 2}, "--views: can't be combined with --unfreeze-last"),
        ({"mixup": 0.2, "precision": "bf16"}, "--mixup, --precision: can't be combined with --freeze"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_for("test_resnet", **changes)


def test_old_features_are_removed_and_used_ones_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_LIMIT_BYTES", 3000)
    rows = np.ones((100, 3), np.float32)
    keys = [letter * 64 for letter in "abc"]
    for age, key in enumerate(keys[:2]):
        compute_features(key, 3, [100], lambda _: rows)
        os.utime(cache / f"{key}.npy", (time.time() - 100 + age,) * 2)
    # The oldest is used again, so the other one goes.
    compute_features(keys[0], 3, [100], lambda _: pytest.fail("computed again"))
    assert compute_features(keys[2], 3, [100], lambda _: rows).sum() == 300
    assert {file.stem for file in cache.iterdir()} == {keys[0], keys[2]}


def test_a_damaged_or_partial_file_is_computed_again(cache: Path) -> None:
    expected = np.arange(60, dtype=np.float32).reshape(20, 3)

    def compute(number: int) -> Any:
        return expected[number * 10 : (number + 1) * 10]

    compute_features(KEY, 3, [10, 10], compute)
    whole = (cache / f"{KEY}.npy").read_bytes()
    for name, content in ((f"{KEY}.npy", b"no array"), (f"{KEY}.part", whole[:-50]), (f"{KEY}.part", whole[:20])):
        (cache / f"{KEY}.npy").unlink(missing_ok=True)
        (cache / name).write_bytes(content)
        assert np.array_equal(compute_features(KEY, 3, [10, 10], compute), expected)
        assert (cache / f"{KEY}.npy").read_bytes() == whole
        assert not (cache / f"{KEY}.part").exists()


def test_a_cache_that_can_t_be_written_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"features can't be cached: Not a directory. Free some space, or set XDG"):
        compute_features(KEY, 3, [1], lambda _: np.ones((1, 3), np.float32))
