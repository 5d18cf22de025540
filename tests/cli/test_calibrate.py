"""`plurum calibrate` on a run of two classes, and the export of what it writes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from plurum.client.ui.corrections import COLUMNS
from plurum.dicom_files import PatientNames
from plurum.run import Run
from plurum.settings.calibration import CalibrateSettings
from plurum.spec import CascadeRule, Ensemble, read_ensemble, write_metadata
from plurum.training import CalibrationReport, FitSettings, calibrate_run, fit_run
from plurum.training.calibration.site_images import decode_site_images, load_site_images
from plurum.training.inference.predictions import predict_ensemble
from plurum.voting import Verdict, decide
from tests.cli.command_line import CommandLine
from tests.images.dicom_files import dicom
from tests.sample_runs.decided_run import build_decided_run
from tests.sample_runs.site_images import write_site

FEW = ("--draws", "100")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = build_decided_run(tmp_path_factory.mktemp("decided") / "run")
    fit_run(run.path, FitSettings(select="all", draws=100))
    return run


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("north") / "north", ce=80, laa=20)


@pytest.fixture
def run(fitted: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(fitted.path, tmp_path / "run"))


def verdict_at(run: Run, site: str | None, manifest: Path) -> tuple[Verdict, np.ndarray]:
    ensemble, data = run.ensemble(site), load_site_images(str(manifest), run).data
    predicted = predict_ensemble(run, ensemble, decode_site_images(data, ensemble.image), "images")
    return decide(predicted.probabilities, ensemble.rule, predicted.novelty), data.table.labels


def test_a_site_gains_and_the_run_stays(run: Run, north: Path, plurum: CommandLine, tmp_path: Path) -> None:
    before = run.ensemble_file.read_bytes()
    printed = plurum.said("calibrate", run.path, "--on", north, "--name", "north", *FEW)
    assert run.ensemble_file.read_bytes() == before
    names = sorted(path.name for path in run.site_folder("north").iterdir())
    assert names == ["calibration.json", "calibration.png", "ensemble.json", "reference.npz"]
    ensemble, old = run.ensemble("north"), run.ensemble()
    assert (ensemble.members, ensemble.voting.weights) == (old.members, old.voting.weights)
    site = ensemble.site
    assert site is not None
    assert (ensemble.version, site.name, site.images, site.patients, site.data) == (2, "north", 100, 100, str(north))
    assert (ensemble.scores, ensemble.promise) == ({}, None)
    assert ensemble.baseline is not None
    assert ensemble.baseline.images == 100
    report = CalibrationReport.model_validate_json((run.site_folder("north") / "calibration.json").read_text())
    assert report.ensemble == ensemble
    assert report.is_changed
    assert report.changes["nll"].difference.high is not None
    assert report.changes["nll"].difference.high < 0
    assert "site: 100 images of 100 patients: 80 of CE, 20 of LAA" in printed
    assert f"probabilities: temperature {ensemble.voting.temperature:.3f}, classes CE x" in printed
    assert "review risk: no promise; 100 patients without an error could promise 3.0% at best" in printed
    assert f"next: plurum export {run.path} --site north" in printed
    others = write_site(tmp_path / "others", ce=160, laa=40, skip=100)
    for better in ("nll", "accuracy"):
        figures = [figure(better, *verdict_at(run, name, others)) for name in (None, "north")]
        assert figures[1] < figures[0], better


def figure(name: str, verdict: Verdict, labels: np.ndarray) -> float:
    if name == "accuracy":
        return float((verdict.label != labels).mean())
    return float(-np.log(verdict.probabilities[np.arange(len(labels)), labels]).mean())


def test_figures_before_are_those_of_the_run(run: Run, north: Path) -> None:
    report = calibrate_run(run.path, CalibrateSettings(on=str(north), draws=100))
    assert report.ensemble.site is not None
    # The file's stem.
    assert report.ensemble.site.name == "site"
    verdict, labels = verdict_at(run, None, north)
    assert report.changes["accuracy"].before.value == pytest.approx((verdict.label == labels).mean())
    assert report.changes["nll"].before.value == pytest.approx(figure("nll", verdict, labels))
    assert report.reviewed["before"] == pytest.approx(verdict.review.mean())


def test_enough_patients_are_a_reference_and_fewer_are_not(run: Run, north: Path, plurum: CommandLine) -> None:
    old, file = run.ensemble().outliers, run.site_reference("north")
    assert old is not None
    printed = plurum.said("calibrate", run.path, "--on", north, "--name", "north", *FEW)
    assert "outliers: the reference is of 100 patients of the site; with the fit's, " in printed
    rule = run.ensemble("north").outliers
    assert rule is not None
    assert (rule.split, rule.patients, rule.detectors) == ("site", 100, old.detectors)
    # Darker images are less like the training images.
    assert np.mean(rule.reference) > np.mean(old.reference)
    assert file.is_file()
    baseline = run.ensemble("north").baseline
    assert baseline is not None
    assert baseline.review_share == pytest.approx(verdict_at(run, "north", north)[0].review.mean())
    few = north.with_name("few.csv")
    few.write_text("".join(north.read_text().splitlines(keepends=True)[:100]))
    printed = plurum.said("calibrate", run.path, "--on", few, "--name", "north", *FEW)
    assert "the rate of false alarms here is not known, because a reference of 99 patients allows no p-value" in printed
    assert run.ensemble("north").outliers == old
    assert not file.exists()


def test_json(run: Run, north: Path, plurum: CommandLine) -> None:
    report = json.loads(plurum.said("calibrate", run.path, "--on", north, "--json", *FEW))
    assert report["ensemble"] == json.loads((run.site_folder("site") / "ensemble.json").read_text())
    assert report["by_class"] == {"CE": 80, "LAA": 20}


def test_a_site_has_no_cascade(run: Run, north: Path) -> None:
    stage = {"members": 1, "voting": {"weights": [1.0]}, "leave": 0.75, "share": 0.5}
    cost = {"value": 0.6, "low": 0.5, "high": 0.7}
    rule = CascadeRule.model_validate({"order": [0, 1], "stages": [stage], "costs": [0.2, 0.8], "cost": cost})
    write_metadata(run.ensemble_file, run.ensemble().with_cascade(rule))
    report = calibrate_run(run.path, CalibrateSettings(on=str(north), name="north", draws=100))
    assert run.ensemble("north").cascade is None
    assert run.ensemble().cascade == rule
    assert any(
        line.startswith("cascade: none, because its exit was certified for other patients") for line in report.lines
    )


def test_a_point_and_its_promises(run: Run, north: Path, plurum: CommandLine) -> None:
    fit_run(run.path, FitSettings(select="all", positive="CE", specificity=0.9, risk=0.1, draws=100))
    printed = plurum.said("calibrate", run.path, "--on", north, "--name", "north", *FEW)
    assert "these images can't show specificity 0.9 at 95% confidence; the old decisions stay" in printed
    assert "operating point, before: sensitivity " in printed
    (before, _), (after, _) = (verdict_at(run, site, north) for site in (None, "north"))
    np.testing.assert_array_equal(before.label, after.label)
    assert not np.allclose(before.probabilities, after.probabilities)


def test_corrections_of_the_page(run: Run, north: Path, plurum: CommandLine, tmp_path: Path) -> None:
    with north.open(newline="") as file:
        rows = list(csv.DictReader(file))
    manifest = tmp_path / "corrections.csv"
    with manifest.open("w", newline="") as file:
        cells = ["CE", "0.9", "a.png", "Ada", "2026-11-30T00:00:00Z"]
        csv.writer(file).writerows(
            [COLUMNS, *([str((north.parent / row["path"]).absolute()), row["label"], *cells] for row in rows)]
        )
    printed = plurum.said("calibrate", run.path, "--on", manifest, *FEW)
    assert "corrections: these images were chosen for review" in printed
    site = run.ensemble("corrections").site
    assert site is not None
    assert site.patients == 100
    lost = tmp_path / "lost.csv"
    lost.write_text("path,label\n" + "\n".join(f"{tmp_path}/deleted{number}.png,CE" for number in range(3)))
    assert f"line 2 names {tmp_path}/deleted0.png, which does not exist; and 2 more like it" in plurum.refused(
        "calibrate", run.path, "--on", lost
    )


def write_chosen(north: Path, manifest: Path, chosen: Callable[[int], str]) -> Path:
    """Write a manifest of the site's images with the probability with which each was chosen."""
    with north.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "sampling_probability"])
        for number, row in enumerate(rows):
            path = (north.parent / row["path"]).absolute()
            writer.writerow([path, row["label"], row["patient"], chosen(number)])
    return manifest


def test_images_count_by_how_they_were_chosen(run: Run, north: Path, plurum: CommandLine, tmp_path: Path) -> None:
    manifest = write_chosen(north, tmp_path / "chosen.csv", lambda number: {0: "", 1: "0.05"}.get(number % 4, "1"))
    printed = plurum.said("calibrate", run.path, "--on", manifest, *FEW)
    site = run.ensemble("chosen").site
    assert site is not None
    assert (site.images, site.patients) == (75, 75)
    assert "left out: 25 images without a sampling_probability, which represent only themselves" in printed
    # 25 images of 20 each, and 50 of 1 each.
    effective = 550**2 / (25 * 20**2 + 50)
    assert f"together they say as much as {effective:.1f} patients of a random sample" in printed
    assert "corrections: these images were chosen for review" not in printed
    report = CalibrationReport.model_validate_json((run.site_folder("chosen") / "calibration.json").read_text())
    assert report.effective_patients == pytest.approx(effective)
    verdict, labels = verdict_at(run, None, manifest)
    weights = np.tile([20.0, 1.0, 1.0], 25)
    assert report.changes["accuracy"].before.value == pytest.approx(
        np.average(verdict.label == labels, weights=weights)
    )
    assert report.reviewed["before"] == pytest.approx(np.average(verdict.review, weights=weights))
    baseline = run.ensemble("chosen").baseline
    assert baseline is not None
    new, _ = verdict_at(run, "chosen", manifest)
    assert baseline.review_share == pytest.approx(np.average(new.review, weights=weights), abs=0.02)


def test_images_that_were_all_chosen_alike_have_no_weights(run: Run, north: Path, tmp_path: Path) -> None:
    reports = []
    for cell in ("0.02", "1", ""):
        manifest = write_chosen(north, tmp_path / "chosen.csv", dict.fromkeys(range(100), cell).__getitem__)
        reports.append(calibrate_run(run.path, CalibrateSettings(on=str(manifest), draws=100)))
    plain = calibrate_run(run.path, CalibrateSettings(on=str(north), name="chosen", draws=100))
    for report in reports:
        assert (report.effective_patients, report.changes) == (None, plain.changes)
        assert report.ensemble.voting == plain.ensemble.voting


@pytest.mark.parametrize("cell", ["0", "2", "-0.1", "nan", "often"])
def test_impossible_probabilities_get_one_line(
    fitted: Run, north: Path, plurum: CommandLine, tmp_path: Path, cell: str
) -> None:
    manifest = write_chosen(north, tmp_path / "chosen.csv", lambda number: cell if number == 3 else "1")
    refused = plurum.refused("calibrate", fitted.path, "--on", manifest)
    assert f"--on: expected a sampling_probability above 0 to 1, or none, got '{cell}' in {manifest}" in refused
    assert not (fitted.path / "sites").exists()


def relabel(north: Path, folder: Path, label: Callable[[str, int], str | None]) -> Path:
    """Write a manifest of the site's images with other labels, without those whose label is None."""
    with north.open(newline="") as file:
        rows = list(csv.DictReader(file))
    folder.mkdir(exist_ok=True)
    manifest = folder / "changed.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for number, row in enumerate(rows):
            if (name := label(row["label"], number)) is not None:
                writer.writerow([(north.parent / row["path"]).absolute(), name, row["patient"]])
    return manifest


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            lambda name, _: {"CE": "CE", "LAA": "other"}[name],
            "--on: expected labels among the run's classes CE, LAA, got other in ",
        ),
        (
            lambda name, _: "CE" if name == "CE" else None,
            "--on: expected at least 2 patients of each class, got 0 of LAA in ",
        ),
        (
            lambda name, number: name if name == "CE" or number == 80 else None,
            "--on: expected at least 2 patients of each class, got 1 of LAA in ",
        ),
        (lambda name, number: "" if number == 3 else name, "line 5 has no label"),
    ],
)
def test_bad_labels_get_one_line(
    fitted: Run, north: Path, plurum: CommandLine, tmp_path: Path, label: Callable[[str, int], str | None], message: str
) -> None:
    manifest = relabel(north, tmp_path / "bad", label)
    assert message in plurum.refused("calibrate", fitted.path, "--on", manifest)
    assert not (fitted.path / "sites").exists()


def test_bad_use_gets_one_line(run: Run, north: Path, plurum: CommandLine, tmp_path: Path) -> None:
    assert "nowhere.csv does not exist" in plurum.refused("calibrate", run.path, "--on", "nowhere.csv")
    assert "--name: " in plurum.refused("calibrate", run.path, "--on", north, "--name", "../up")
    (broken := north.parent / "images" / "broken.png").write_bytes(b"no image")
    manifest = relabel(north, tmp_path / "broken", lambda name, _: name)
    with manifest.open("a") as file:
        file.write(f"{broken},CE,x\n")
    refused = plurum.refused("calibrate", run.path, "--on", manifest)
    broken.unlink()
    assert "1 of 101 images can't be read; repair or remove them: " in refused
    assert not (run.path / "sites").exists()
    fit_run(run.path, FitSettings(mode="hard", select="all", draws=100))
    assert "RUN: expected a vote of probabilities, got mode hard" in plurum.refused(
        "calibrate", run.path, "--on", north
    )
    run.ensemble_file.unlink()
    assert "has no ensemble.json. Fit the run" in plurum.refused("calibrate", run.path, "--on", north)


def test_images_that_the_run_has_seen_are_refused(run: Run, plurum: CommandLine, tmp_path: Path) -> None:
    items = run.data_folder / "items.csv"
    seen = tmp_path / "seen"
    seen.mkdir()
    lines = ["path,label"]
    for number in range(4):
        Image.fromarray(np.full((32, 32), number, dtype=np.uint8)).save(seen / f"{number}.png")
        lines.append(f"{number}.png,{('CE', 'LAA')[number % 2]}")
    (seen / "site.csv").write_text("\n".join(lines))
    first = items.read_text().splitlines()[1]
    source = first.split(",")[1]
    items.write_text(items.read_text().replace(f",{source},", f",{seen / '2.png'},", 1))
    refused = plurum.refused("calibrate", run.path, "--on", seen / "site.csv")
    assert "--on: expected images that the run has not seen, got 1 of its training or validation images" in refused


def write_archive(path: Path, parts: tuple[int, int], ends: tuple[int, int], brightness: float) -> Path:
    """Write a MedMNIST file of even digits (0) and odd ones (1): those from `parts` to `ends` of each."""
    digits, arrays = load_digits(), {}
    rows = np.concatenate([np.flatnonzero(digits.target % 2 == odd)[parts[odd] : ends[odd]] for odd in (0, 1)])
    shuffled = np.random.default_rng(0).permutation(rows)
    sizes = np.cumsum([int(0.6 * len(rows)), int(0.25 * len(rows))])
    for name, some in zip(("train", "val", "test"), np.split(shuffled, sizes), strict=True):
        arrays[f"{name}_images"] = np.rint(digits.images[some] * brightness * 255 / 16).astype(np.uint8)
        arrays[f"{name}_labels"] = (digits.target[some] % 2)[:, None].astype(np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_medmnist_file_with_a_planted_shift(plurum: CommandLine, tmp_path: Path) -> None:
    """Train, fit, calibrate and export by the commands; judge on other images of the site."""
    data = write_archive(tmp_path / "data.npz", (0, 0), (400, 400), 1.0)
    site = write_archive(tmp_path / "site.npz", (400, 400), (500, 425), 0.6)
    rest = write_archive(tmp_path / "rest.npz", (500, 425), (880, 520), 0.6)
    run = Run(tmp_path / "run")
    options = ("--image-size", 32, "--batch-size", 16, "--epochs", 6, "--out", run.path)
    plurum.ended("train", data, "--arch", "test_byobnet", "--arch", "test_resnet", *options)
    plurum.said("fit", run.path, *FEW)
    printed = plurum.said("calibrate", run.path, "--on", site, *FEW)
    assert "site: 125 images of 125 patients: 100 of 0, 25 of 1" in printed
    before, after = (figure("nll", *verdict_at(run, name, rest)) for name in (None, "site"))
    assert after < before
    plurum.said("export", run.path, "--site", "site")
    assert_serves(run.site_folder("site") / "model_repository", run.ensemble("site"))


def assert_serves(repository: Path, ensemble: Ensemble) -> None:
    """Check that a repository has this ensemble; the outlier reference is that of its own graphs."""
    served = read_ensemble(repository / "ensemble.json")
    assert served.with_outliers(None) == ensemble.with_outliers(None)
    assert served.outliers is not None
    assert ensemble.outliers is not None
    assert served.outliers.reference == pytest.approx(ensemble.outliers.reference, rel=1e-4, abs=1e-3)


@pytest.mark.slow
def test_an_export_serves_the_site(run: Run, north: Path, plurum: CommandLine) -> None:
    assert "expected a calibrated site" in plurum.refused("export", run.path, "--site", "north")
    plurum.said("calibrate", run.path, "--on", north, "--name", "north", *FEW)
    printed = plurum.said("export", run.path, "--site", "north", "--fused")
    repository = run.site_folder("north") / "model_repository"
    assert f"model repository: {repository}" in printed
    assert_serves(repository, run.ensemble("north"))
    assert not (run.path / "model_repository").exists()
    run.site_reference("north").unlink()
    refused = plurum.refused("export", run.path, "--site", "north", "--out", run.path / "other")
    assert "reference.npz: expected reference images, got no file that can be read" in refused
    assert not (run.path / "other").exists()
    assert "got 'south'" in plurum.refused("export", run.path, "--site", "south")
    fit_run(run.path, FitSettings(select="all", alpha=0.2, draws=100))
    refused = plurum.refused("export", run.path, "--site", "north")
    assert "got one of another fit" in refused


def test_patients_of_dicom_images_are_named_with_the_key_of_the_training(
    run: Run, tmp_path: Path, plurum: CommandLine
) -> None:
    for label in run.data().classes:
        (tmp_path / "site" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
            (tmp_path / "site" / label / f"{number}.dcm").write_bytes(dicom(pixels, patient=f"{label}{number // 2}"))
    names = PatientNames(tmp_path / "key")
    table = load_site_images(str(tmp_path / "site"), run, names).data.table
    assert table.patients == tuple(names.name(Path(source)) for source in table.sources)
    (tmp_path / "key").chmod(0o644)
    options = ("--on", tmp_path / "site", "--pseudonym-key-file", tmp_path / "key")
    refusal = plurum.refused("calibrate", run.path, *options)
    assert "--pseudonym-key-file: expected a file that only its owner can read" in refusal
