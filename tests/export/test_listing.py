"""Lists of the files of exported and tuned repositories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.benchmarks.tune.repository import read_artefacts, write_variant
from plurum.benchmarks.tune.space import forms
from plurum.errors import RepositoryError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.doctor import check_repository
from plurum.export.manifest import is_current, read_manifest
from plurum.export.repository import selection
from plurum.files import sha256_of
from plurum.repository.listing import ListingDifferences, check_exported, differences_from, listing_of
from plurum.run import Run

SETTINGS = ExportSettings(max_batch_size=8, form="chain")


def errors(repository: Path) -> dict[str, str]:
    return {one.check: one.detail for one in check_repository(repository) if one.state == "error"}


def _swap_classes(folder: Path) -> None:
    path = folder / "voter" / "1" / "ensemble.json"
    path.write_text(path.read_text().replace('"one"', '"x"').replace('"two"', '"one"').replace('"x"', '"two"'))


def _add_a_model(folder: Path) -> None:
    shutil.copytree(folder / "voter", folder / "evil")


def _forget_the_list(folder: Path) -> None:
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(manifest | {"files": None}))


def _cut_a_graph(folder: Path) -> None:
    graph = folder / "resnet10t" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([_swap_classes], "voter/1/ensemble.json is not the file that was exported"),
        ([_swap_classes, _forget_the_list], "voter/1/ensemble.json is not the file that was exported"),
        ([_swap_classes, lambda folder: (folder / "export.json").unlink()], "voter/1/ensemble.json is not the file"),
        ([_cut_a_graph], "resnet10t/1/model.onnx is not the file that was exported"),
        ([_cut_a_graph, _forget_the_list], "resnet10t/1/model.onnx is not the file that was exported"),
        ([_add_a_model], "evil/1/audit.py was not exported"),
        ([lambda folder: (folder / "voter" / "1" / "extra.py").touch()], "voter/1/extra.py was not exported"),
        ([lambda folder: (folder / "voter" / "2").mkdir()], "voter/2/ was not exported"),
        (
            [lambda folder: (folder / "preprocess" / "1" / "images" / "__init__.py").unlink()],
            "preprocess/1/images/__init__.py is missing",
        ),
        ([lambda folder: (folder / "export.json").write_text("{")], "export.json can't be read"),
        ([lambda folder: (folder / "export.json").write_text("[]")], "export.json can't be read"),
    ],
)
def test_files_that_differ_from_the_export_are_named(
    repository: Path, tmp_path: Path, changes: list[Callable[[Path], object]], told: str
) -> None:
    changed = shutil.copytree(repository, tmp_path / "changed")
    for change in changes:
        change(changed)
    with pytest.raises(RepositoryError) as raised:
        check_exported(changed)
    assert told in str(raised.value)
    assert str(raised.value).endswith("; export it again with plurum export")


def test_a_plan_is_the_one_that_was_built(repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(repository, tmp_path / "gpu")
    manifest = json.loads((folder / "export.json").read_text())
    artefacts = [one | {"backend": "tensorrt"} for one in manifest["artefacts"]]
    (folder / "export.json").write_text(json.dumps(manifest | {"artefacts": artefacts}))
    plan = folder / "resnet10t" / "1" / "model.plan"
    plan.write_bytes(b"built here")
    plan.with_name("model.plan.json").write_text(json.dumps({"plan_sha256": sha256_of(plan)}))
    assert check_exported(folder)
    plan.write_bytes(b"built elsewhere")
    with pytest.raises(RepositoryError, match=r"resnet10t/1/model\.plan is not the file"):
        check_exported(folder)


def test_a_repository_without_a_list_of_files_is_reported(repository: Path, tmp_path: Path) -> None:
    assert check_exported(repository)
    assert check_exported(repository, listing_of(repository))
    folder = shutil.copytree(repository, tmp_path / "copy")
    _forget_the_list(folder)
    assert not check_exported(folder)
    (folder / "export.json").unlink()
    assert not check_exported(folder)


def test_all_files_but_the_list_itself_are_listed(repository: Path) -> None:
    listed = read_manifest(repository).files
    there = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    assert listed is not None
    assert set(listed) == {name for name in there if "__pycache__" not in name} - {"export.json"}


def test_differences_are_told_apart(repository: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(repository, tmp_path / "changed")
    listing = listing_of(changed)
    assert not differences_from(listing, changed)
    (changed / "voter" / "1" / "voting" / "decisions.py").unlink()
    (changed / "parity.json").write_text("{}")
    (changed / "ensemble" / "1" / "model.py").touch()
    (changed / "empty").mkdir()
    assert differences_from(listing, changed) == ListingDifferences(
        missing=("voter/1/voting/decisions.py",), changed=("parity.json",), extra=("ensemble/1/model.py", "empty/")
    )


DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda path: list(map(shutil.rmtree, (path / "preprocess", path / "ensemble"))),
    lambda path: (path / "voter" / "1" / "ensemble.json").write_text("{"),
    lambda path: (path / "voter" / "1" / "metrics.py").unlink(),
    lambda path: shutil.copytree(path / "resnet10t" / "1", path / "resnet10t" / "2"),
)


def test_a_damaged_export_is_not_current(run: Run, repository: Path, tmp_path: Path) -> None:
    ensemble = run.ensemble()
    for number, damage in enumerate(DAMAGES):
        broken = shutil.copytree(repository, tmp_path / str(number))
        assert is_current(broken, ensemble, SETTINGS)
        damage(broken)
        assert not is_current(broken, ensemble, SETTINGS)
    # An older manifest lists no files.
    manifest = json.loads((repository / "export.json").read_text()) | {"files": None}
    old = shutil.copytree(repository, tmp_path / "old")
    (old / "export.json").write_text(json.dumps(manifest))
    assert not is_current(old, ensemble, SETTINGS)


def test_what_tune_writes_passes_the_doctor(repository: Path, tmp_path: Path) -> None:
    own = read_artefacts("own", repository)
    variants = [one for one in forms(own, 2, ("onnxruntime",)) if one.form == "chain"]
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    write_variant(own, variants[0], tuned, trial=False)
    stated = [(folder / "resnet10t" / "config.pbtxt").read_bytes() for folder in (repository, tuned)]
    assert stated[0] != stated[1]
    for name in ("tuning.json", "tuning.csv", "tuning.png"):
        (tuned / name).touch()
    assert errors(tuned) == {}
    with (tuned / "resnet10t" / "config.pbtxt").open("a") as file:
        file.write("# by hand\n")
    assert errors(tuned) == {"files": "resnet10t/config.pbtxt was changed since it was exported"}


def test_tune_does_not_vouch_for_what_was_changed_before(repository: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(repository, tmp_path / "changed")
    (changed / "voter" / "1" / "voting" / "decisions.py").write_text("decide = None\n")
    own, tuned = read_artefacts("own", changed), tmp_path / "tuned"
    tuned.mkdir()
    write_variant(own, forms(own, 2, ("onnxruntime",))[0], tuned, trial=False)
    assert errors(tuned) == {"files": "voter/1/voting/decisions.py was changed since it was exported"}


def test_an_export_over_a_damaged_one_mends_it(run: Run, repository: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(repository, tmp_path / "broken")
    shutil.rmtree(broken / "preprocess")
    graphs = {one: (repository / one / "1" / "model.onnx") for one in ("resnet10t", "regnetx_002")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            selection,
            "onnx_from_model",
            lambda _, path: shutil.copyfile(graphs[path.name.removesuffix(".fp32.onnx")], path),
        )
        assert not repository_from_run(run, broken, SETTINGS).unchanged
    assert errors(broken) == {}
