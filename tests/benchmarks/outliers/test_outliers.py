"""The outlier suite: methods against scikit-learn, the law of false alarms, material, and a short run."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from plurum.benchmarks.claims.outliers.false_alarms import redraw
from plurum.benchmarks.claims.outliers.material import CHOOSING, FAR, NEAR, TaskName, make_kinds, read_tasks
from plurum.benchmarks.claims.outliers.methods import METHODS, OURS, KnownImages, MemberOutputs
from plurum.benchmarks.claims.outliers.page import picture_of, suite_tables
from plurum.benchmarks.claims.outliers.plots import plot_from_outliers
from plurum.benchmarks.claims.outliers.result import KindFigure, OutlierResult, csv_from_outliers
from plurum.benchmarks.tools.pages import page_with_tables
from plurum.errors import DataError, SettingsError
from plurum.predictions.arrays import Floats
from tests.benchmarks.programs import run_benchmark
from tests.docs.pages import DOCS

CLASSES, WIDTH = 4, 80
ACCURACY: dict[TaskName, tuple[float, ...]] = {"digits": (0.9, 1.0), "fashion": (0.8, 0.9)}


@pytest.fixture(scope="module")
def known() -> KnownImages:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 500)
    weight, bias = rng.normal(size=(CLASSES, WIDTH)), rng.normal(size=CLASSES)
    features = weight[labels] + rng.normal(size=(500, WIDTH)) * np.linspace(0.1, 1, WIDTH)
    return KnownImages(MemberOutputs(features, features @ weight.T + bias), labels, weight, bias)


@pytest.fixture(scope="module")
def new(known: KnownImages) -> MemberOutputs:
    features = np.random.default_rng(1).normal(size=(30, WIDTH))
    return MemberOutputs(features, features @ known.weight.T + known.bias)


def distances(features: Floats, means: Floats, covariance: Floats) -> Floats:
    apart = features[:, None] - means
    found: Floats = np.einsum("icj,jk,ick->ic", apart, np.linalg.inv(covariance), apart).min(axis=1)
    return found


def test_the_methods_are_those_of_their_papers(known: KnownImages, new: MemberOutputs) -> None:
    features = known.outputs.features
    means = np.stack([features[known.labels == one].mean(axis=0) for one in range(CLASSES)])
    centre = features.mean(axis=0)
    within = distances(new.features, means, ledoit_wolf(features - means[known.labels], assume_centered=True)[0])
    whole = distances(new.features, centre[None], ledoit_wolf(features - centre, assume_centered=True)[0])
    found = {name: method(known)(new) for name, method in METHODS.items()}
    np.testing.assert_allclose(found["Mahalanobis, full"], within, rtol=1e-6)
    np.testing.assert_allclose(found["relative Mahalanobis, full"], within - whole, rtol=1e-6)
    np.testing.assert_allclose(found["energy"], -logsumexp(new.logits, axis=1), rtol=1e-9)
    # From the rows that the method draws.
    rows = np.random.default_rng(0).permutation(500)[:250]
    nearest = NearestNeighbors(n_neighbors=10).fit(normalize(features[rows]))
    np.testing.assert_allclose(found["nearest neighbours"], nearest.kneighbors(normalize(new.features))[0][:, -1])


def test_vim_is_the_length_outside_the_principal_space_less_the_energy(known: KnownImages, new: MemberOutputs) -> None:
    found = METHODS["ViM"](known)
    inside = MemberOutputs(new.features * 0 - np.linalg.pinv(known.weight) @ known.bias, new.logits)
    np.testing.assert_allclose(found(inside), -logsumexp(new.logits, axis=1), atol=1e-6)
    assert (found(new) > -logsumexp(new.logits, axis=1)).all()


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_false_alarms_of_single_images_follow_their_law(alpha: float) -> None:
    scores = np.random.default_rng(0).normal(size=1000)
    found = redraw(scores, np.arange(1000), 350, alpha, 400)
    assert found["law"] <= alpha
    assert found["mean"] == pytest.approx(found["law"], abs=4 * found["error"])
    assert found["spread"] == pytest.approx(found["law_spread"], rel=0.2)
    assert found["patients"] == found["mean"]


def test_images_that_are_alike_within_patients_are_flagged_no_more_often() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(600), rng.integers(1, 6, 600))
    scores = rng.normal(size=600)[patients] + 0.3 * rng.normal(size=len(patients))
    found = redraw(scores, patients, 200, 0.05, 200)
    assert found["mean"] <= 0.05 + 4 * found["error"]
    assert found["patients"] > found["mean"]


def test_below_the_smallest_p_value_nothing_is_flagged() -> None:
    found = redraw(np.random.default_rng(0).normal(size=200), np.arange(200), 80, 0.01, 20)
    assert (found["mean"], found["law"]) == (0.0, 0.0)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in the format of Fashion-MNIST, with squares of ten sizes."""
    folder = tmp_path_factory.mktemp("fashion")
    labels = (np.arange(8000) % 10).astype(np.uint8)
    images = np.zeros((8000, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 : 6 + 2 * label, 4 : 6 + 2 * label] = 200
    for name, array in {"images-idx3": images, "labels-idx1": labels}.items():
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        for part in ("train", "t10k"):
            (folder / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return folder


def test_every_kind_has_as_many_images_as_the_test(fashion: Path) -> None:
    tasks = read_tasks(fashion, 0)
    pairs: tuple[tuple[TaskName, TaskName], ...] = (("digits", "fashion"), ("fashion", "digits"))
    for name, other in pairs:
        kinds = make_kinds(tasks[name], tasks[other], 0)
        assert list(kinds) == ["test", *FAR, *NEAR]
        for kind, images in kinds.items():
            assert images.dtype == np.uint8
            assert images.shape[1:] == (32, 32, 3)
            assert abs(len(images) - len(kinds["test"])) <= 3, kind
            assert kind == "test" or not np.array_equal(images[:10], kinds["test"][:10])
    again = make_kinds(read_tasks(fashion, 0)["digits"], tasks["fashion"], 0)
    assert all(
        np.array_equal(again[kind], images) for kind, images in make_kinds(tasks["digits"], tasks["fashion"], 0).items()
    )


def test_a_page_gets_its_tables_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "outliers.md"
    with pytest.raises(SettingsError, match="--page: expected a page with the marks <!-- suite -->"):
        page_with_tables(page, {"suite": ""})
    page.write_text("a\n<!-- suite -->\n| x |\n<!-- /suite -->\nb\n<!-- alarms -->\n<!-- /alarms -->\n")
    found = page_with_tables(page, {"suite": "| \\1 |", "alarms": "| z |"})
    assert found == "a\n<!-- suite -->\n| \\1 |\n<!-- /suite -->\nb\n<!-- alarms -->\n| z |\n<!-- /alarms -->\n"


def test_without_fashion_mnist_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        read_tasks(tmp_path, 0)


def test_a_result_has_means_a_table_and_a_picture() -> None:
    figures = [
        KindFigure(task=task, seed=seed, method=method, kind=kind, auroc=0.5 + 0.1 * seed, fpr95=0.3)
        for task in ("digits", "fashion")
        for seed in (0, 1)
        for method in (OURS, "ViM", "entropy", "disagreement", "MSP", "energy")
        for kind in (*FAR, *NEAR)
    ]
    result = OutlierResult(figures=tuple(figures), archs=("a",), accuracy=ACCURACY, machine={}, versions={})
    assert result.aurocs("digits", OURS, "noise") == [0.5, 0.6]
    assert result.mean_auroc(OURS, CHOOSING) == pytest.approx(0.55)
    assert result.mean_fpr95(OURS, NEAR, "fashion") == pytest.approx(0.3)
    assert len(csv_from_outliers(result).splitlines()) == 1 + len(figures)
    assert "| OUTLIER | 0.550 (30) |" in suite_tables(result)
    assert "| Members trained on Fashion-MNIST, 85% accurate | other data |" in suite_tables(result)
    with Image.open(io.BytesIO(plot_from_outliers(result))) as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_a_short_run_writes_its_files_and_reuses_the_members(fashion: Path, tmp_path: Path) -> None:
    small = ("--share", 0.1, "--arch", "test_resnet", "--arch", "test_byobnet", "--epochs", 2)
    options = ("--fashion", fashion, "--work", tmp_path / "work", *small)
    out = tmp_path / "out"
    page = shutil.copyfile(DOCS / "outliers.md", tmp_path / "outliers.md")
    ended = run_benchmark("claims.outliers", *options, "--out", out, "--seeds", 1, "--page", page)
    assert sorted(path.name for path in out.iterdir()) == ["outliers.csv", "outliers.json", "outliers.png"]
    result = OutlierResult.model_validate_json((out / "outliers.json").read_text())
    assert result.methods() == [*METHODS, "entropy", "disagreement", "MSP"]
    assert json.loads(ended.stdout)["mean_auroc"][OURS]["far"] > 0.8
    assert picture_of(page).read_bytes() == (out / "outliers.png").read_bytes()
    members = sorted((tmp_path / "work").rglob("checkpoint.safetensors"))
    changed = [path.stat().st_mtime_ns for path in members]
    found = json.loads(
        run_benchmark("claims.outliers.false_alarms", *options, "--draws", 40, "--reference", 40, "--page", page).stdout
    )["found"]
    assert [path.stat().st_mtime_ns for path in members] == changed
    assert {row["precision"] for row in found} == {"fp32", "int8"}
    assert len(found) == 16
    text = page.read_text(encoding="utf-8")
    assert suite_tables(result) in text
    assert f"| fashion | 1 to 5 | INT8 | 0.05 | {100 * found[-1]['mean']:.2f} ± " in text
    assert all(row["mean"] < row["alpha"] + 5 * row["error"] for row in found if row["images"] == "1")
