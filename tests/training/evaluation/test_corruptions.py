"""Corruptions of images, and the figures of predictions for them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plurum.predictions.arrays import Bytes
from plurum.run import Run
from plurum.settings.training import EvaluationSettings
from plurum.training import evaluate_run
from plurum.training.evaluation.corruptions import CORRUPTIONS, blur, corrupt_blocks, corruption_ways
from plurum.training.evaluation.report import csv_from_evaluation, write_report
from plurum.training.evaluation.robustness import FIGURES, figures_from_corrupted, robustness_line
from plurum.training.evaluation.subject import SplitPredictions
from plurum.training.statistics.metrics import LabelledPredictions, Scorer
from plurum.voting import REVIEW_OUTLIER, Verdict, VotingRule, decide, softmax
from tests.training.evaluation.html_page import Page


@pytest.fixture(scope="module")
def pixels() -> Bytes:
    """Smooth images with a bright square, taller than wide."""
    rows, columns = np.mgrid[:48, :32]
    shaded = np.stack([rows * 3, columns * 5, rows + columns + 60], axis=-1)
    shaded[12:24, 8:20] = (220, 120, 190)
    return np.stack([shaded, np.roll(shaded, 5, axis=0), np.flip(shaded, axis=1)]).astype(np.uint8)


def corrupted(pixels: Bytes, rows: list[int], seed: int = 0) -> dict[tuple[str, int], Bytes]:
    blocks = corrupt_blocks(pixels, np.array(rows), seed)
    images = np.concatenate(list(blocks))
    return dict(zip(corruption_ways(), np.split(images, len(corruption_ways())), strict=True))


def test_images_keep_their_shape_and_change_more_with_every_strength(pixels: Bytes) -> None:
    found = corrupted(pixels, [0, 1, 2])
    assert list(found) == [(kind, strength) for kind in CORRUPTIONS for strength in (1, 2, 3)]
    for kind in CORRUPTIONS:
        changes = []
        for strength in (1, 2, 3):
            images = found[kind, strength]
            assert images.shape == pixels.shape
            assert images.dtype == np.uint8
            changes.append(float(np.abs(images.astype(int) - pixels).mean()))
        assert 0 < changes[0] < changes[1] < changes[2], kind


def test_a_corruption_depends_on_seed_and_row_alone(pixels: Bytes) -> None:
    whole, one = corrupted(pixels, [0, 1, 2]), corrupted(pixels, [2])
    for way, images in one.items():
        np.testing.assert_array_equal(images[0], whole[way][2])
    other = corrupted(pixels, [2], seed=1)
    assert {kind for kind, _ in other if not np.array_equal(other[kind, 1], one[kind, 1])} >= {"noise"}
    np.testing.assert_array_equal(other["blur", 3], one["blur", 3])


def test_corruptions_do_what_they_are_named_for(pixels: Bytes) -> None:
    found = {
        kind: images[0].astype(np.float64)
        for (kind, strength), images in corrupted(pixels, [0]).items()
        if strength == 2
    }
    image = pixels[0].astype(np.float64)
    assert (found["noise"] - image)[image < 150].std() == pytest.approx(0.08 * 255, rel=0.15)
    assert found["brightness"].mean() > image.mean() + 30
    assert found["contrast"].std() == pytest.approx(0.4 * image.std(), rel=0.02)
    assert found["contrast"].mean() == pytest.approx(image.mean(), abs=1)
    # Cropping to three quarters of each side enlarges the square.
    assert (found["crop"][..., 0] > 200).sum() == pytest.approx(144 / 0.75**2, rel=0.15)
    flat = np.full((40, 40, 3), 90, np.uint8)
    for kind in ("blur", "crop", "rotation"):
        one = CORRUPTIONS[kind]
        np.testing.assert_array_equal(one.apply(flat, one.strengths[2], np.random.default_rng(0)), flat)


def test_a_blur_is_a_gaussian_of_this_deviation() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    weights = np.asarray(blur(point, 3.0), dtype=np.float64)[..., 0].sum(axis=0)
    places = np.arange(41)
    mean = (weights * places).sum() / weights.sum()
    assert mean == pytest.approx(20)
    # Pillow approximates it by boxes, and pixels are whole numbers.
    assert np.sqrt((weights * (places - mean) ** 2).sum() / weights.sum()) == pytest.approx(3.0, rel=0.15)


def test_stains_change_and_white_stays_white() -> None:
    stain = CORRUPTIONS["stain"]
    white = np.full((8, 8, 3), 255, np.uint8)
    np.testing.assert_array_equal(stain.apply(white, 0.5, np.random.default_rng(0)), white)
    # Haematoxylin alone stays haematoxylin: the ratio of its densities does not change.
    density = 0.7 * np.array([0.65, 0.70, 0.29])
    tissue = np.broadcast_to(np.rint(255 * np.exp(-density)).astype(np.uint8), (8, 8, 3))
    changed = stain.apply(tissue, 0.5, np.random.default_rng(0))
    ratio = np.log(changed[0, 0] / 255) / np.log(tissue[0, 0] / 255)
    assert ratio == pytest.approx(np.full(3, ratio[0]), rel=0.03)
    assert ratio[0] == pytest.approx(1.5, rel=0.03) or ratio[0] == pytest.approx(0.5, rel=0.03)
    np.testing.assert_array_equal(stain.apply(tissue, 0.0, np.random.default_rng(0)), tissue)


RULE = VotingRule((1.0,), review_threshold=0.7)
SETTINGS = EvaluationSettings(draws=100)


def predictions(seed: int, separation: float, labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Verdict:
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), 1, 2))
    logits[np.arange(len(labels)), 0, labels] += separation
    return decide(softmax(logits), RULE)


def test_figures_are_those_of_each_corruption() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 60)
    ways = corruption_ways()
    parts = [predictions(seed, 3.0 - 2.5 * (way == ("JPEG", 3)), labels) for seed, way in enumerate(ways)]
    clean = predictions(99, 3.0, labels)
    joined = Verdict(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in vars(clean)})
    evaluated = SplitPredictions(clean, labels, [f"p{image // 2}" for image in range(60)])
    found = figures_from_corrupted(evaluated, joined, SETTINGS)
    assert [(one.kind, one.strength) for one in found] == [("none", 0), *ways]
    for one, verdict in zip(found, [clean, *parts], strict=True):
        wrong = verdict.label != labels
        assert one.accuracy.value == pytest.approx(1 - wrong.mean())
        assert one.review.value == pytest.approx(verdict.review.mean())
        assert one.wrong_alone.value == pytest.approx((wrong & ~verdict.review).mean())
        assert one.caught.value == (pytest.approx(verdict.review[wrong].mean()) if wrong.any() else None)
        scores = Scorer(LabelledPredictions(verdict.probabilities, verdict.label, labels))(np.ones((60, 1), np.float32))
        assert one.nll == pytest.approx(scores.overall["nll"][0])
        assert one.ece == pytest.approx(scores.overall["ece"][0])
        assert one.outliers is None
    worst = next(one for one in found if (one.kind, one.strength) == ("JPEG", 3))
    assert worst.setting == "quality 8"
    line = robustness_line(found)
    assert f"of corrupted ones at most {worst.wrong_alone.value:.1%} (" in line
    assert line.endswith("by JPEG (quality 8).")


def test_outliers_are_counted_where_they_are_tested() -> None:
    labels = np.zeros(20, dtype=np.int64)
    clean = predictions(0, 3.0, labels)
    joined = predictions(1, 3.0, np.zeros(20 * len(corruption_ways()), dtype=np.int64))
    outlier = np.full(len(joined.label), 0.5)
    outlier[:5] = 0.001
    reasons = (REVIEW_OUTLIER * (outlier < 0.01)).astype(np.uint8)
    tested = replace(joined, outlier=outlier, review_reason=reasons)
    found = figures_from_corrupted(SplitPredictions(clean, labels, [""] * 20), tested, SETTINGS)
    first = found[1].outliers
    assert first is not None
    assert first.value == 0.25
    assert found[0].outliers is None


@pytest.mark.slow
def test_a_report_has_a_table_a_picture_and_the_headline(run: Run, tmp_path: Path) -> None:
    settings = EvaluationSettings(draws=100, corruptions=True, seed=5)
    evaluation = evaluate_run(run.path, settings)
    plain = evaluate_run(run.path, settings.model_copy(update={"corruptions": False}))
    assert plain.corruptions == ()
    assert evaluation.model_copy(update={"corruptions": ()}) == plain
    assert evaluation == evaluate_run(run.path, settings)
    clean = evaluation.corruptions[0]
    assert clean.accuracy == evaluation.ensemble.metrics["accuracy"]
    assert clean.review == evaluation.review.share
    assert len({one.nll for one in evaluation.corruptions}) == 25
    page = Page(write_report(evaluation, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    line = robustness_line(evaluation.corruptions)
    assert page.text.index(line) < page.text.index("Members")
    assert "Gaussian, sigma 0.04 of the shorter side" in page.text
    assert (tmp_path / "corruptions.png").is_file()
    rows = list(csv.DictReader(io.StringIO(csv_from_evaluation(evaluation))))
    found = {row["metric"] for row in rows if row["name"] == "ensemble, blur 3"}
    assert found == set(FIGURES) - {"outliers"}
    write_report(plain, tmp_path)
    assert not (tmp_path / "corruptions.png").exists()
