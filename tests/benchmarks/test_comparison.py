"""Comparing architectures: the front, which votes are worth their cost, what is measured, and the files."""

from __future__ import annotations

import csv
import io
import re
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from plurum.benchmarks.compare.comparison import Comparison, ParetoPoint, pareto_front, points_of
from plurum.benchmarks.compare.contenders import contenders_from_checkpoints, contenders_from_run, model_from_contender
from plurum.benchmarks.compare.costs import flops_of
from plurum.benchmarks.compare.memory import memory_of_graph
from plurum.benchmarks.compare.report import COMPARISON_FILES, write_comparison
from plurum.benchmarks.compare.speed import latency_turn
from plurum.benchmarks.compare.votes import metrics_of, subsets_of, votes_of
from plurum.benchmarks.tools.local import rate_in_threads, rate_of
from plurum.errors import MetadataError, SettingsError
from plurum.run import Run
from plurum.training import FitSettings
from plurum.training.fitting.votes import ValidationPredictions
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.metrics import LabelledPredictions
from plurum.voting import softmax

SETTINGS = FitSettings(select="all", draws=200)
CLASSES = ("a", "b", "c")


def point(name: str, latency_ms: float, accuracy: float) -> ParetoPoint:
    return ParetoPoint(name=name, runtime="onnx_fp32", accuracy=accuracy, latency_ms=latency_ms)


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [
        point("slow and best", 9.0, 0.99),
        point("slower than its equal", 3.0, 0.9),
        point("fast", 1.0, 0.8),
        point("equal", 2.0, 0.9),
        point("as fast and worse", 2.0, 0.85),
        point("slow and worse", 8.0, 0.7),
    ]
    assert [one.name for one in pareto_front(points)] == ["fast", "equal", "slow and best"]


def known(seed: int, images: int = 400) -> ValidationPredictions:
    """Three members: a good one, another that errs independently of it, and one that knows little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    truth = np.eye(3)[labels]
    answers = [softmax(strength * truth + rng.normal(0, 1.2, (images, 3))) for strength in (2.0, 2.0, 0.2)]
    return ValidationPredictions(np.stack(answers, axis=1), labels, np.arange(images), CLASSES)


def test_a_vote_is_worth_its_cost_where_it_beats_what_is_cheaper() -> None:
    told: list[str] = []
    votes = votes_of(
        ["good", "other", "poor"], [1.0, 1.5, 0.1], known(0), known(1), 3, SETTINGS, lambda _, name: told.append(name)
    )
    by_members = {vote.members: vote for vote in votes}
    assert set(by_members) == {("good", "other"), ("good", "poor"), ("other", "poor"), ("good", "other", "poor")}
    assert [vote.latency_ms for vote in votes] == pytest.approx([1.1, 1.6, 2.5, 2.6])
    assert len(told) == 7
    best = by_members["good", "other"]
    assert best.verdict == "worth its cost"
    # Whatever was chosen was cheaper.
    assert best.beside != best.members
    assert best.nll_change.high is not None
    assert best.nll_change.high < 0
    assert best.weights == (0.5, 0.5)
    # What the poor one adds to two good ones is nothing that is worth 0.1 ms.
    assert by_members["good", "other", "poor"].beside == ("good", "other")
    assert by_members["good", "other", "poor"].verdict != "worth its cost"
    assert by_members["good", "poor"].beside == ("good",)


def test_the_alternative_is_chosen_on_validation_images() -> None:
    """On test images another would be better; a choice by those would be told apart."""
    validation, test = known(0), known(1)
    swapped = ValidationPredictions(test.predictions[:, [2, 1, 0]], test.labels, test.groups, CLASSES)
    votes = votes_of(["one", "two", "three"], [1.0, 9.0, 1.1], validation, swapped, 2, SETTINGS)
    by_members = {vote.members: vote for vote in votes}
    assert by_members["one", "three"].beside == ("one",)


def test_sets_are_counted_up_to_the_largest() -> None:
    assert subsets_of(3, 2) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert len(subsets_of(10, 20)) == 2**10 - 1


def test_metrics_are_those_of_scikit_learn_with_intervals_around_them() -> None:
    one = known(3)
    answers = LabelledPredictions(one.predictions[:, 0], one.predictions[:, 0].argmax(axis=1), one.labels)
    found = metrics_of(answers, Bootstrap(one.groups, 200, 0))
    truth, said = answers.labels, answers.winners
    expected = {
        "accuracy": float((truth == said).mean()),
        "precision": precision_score(truth, said, average="macro"),
        "recall": recall_score(truth, said, average="macro"),
        "f1": f1_score(truth, said, average="macro"),
        "roc_auc": roc_auc_score(truth, answers.probabilities, multi_class="ovr"),
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected)
    for figure in found.values():
        low, value, high = (one for one in (figure.low, figure.value, figure.high) if one is not None)
        assert low < value < high


def test_a_turn_leaves_out_its_first_prediction() -> None:
    calls: list[int] = []

    def predict(pixels: npt.NDArray[np.uint8]) -> None:
        # The first is ten times as slow, as first predictions are.
        time.sleep(0.002 if calls else 0.02)
        calls.append(len(pixels))

    pixels = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    assert 100 < latency_turn(predict, pixels[:1], 0.02) <= 500
    calls.clear()
    assert 400 < rate_of(predict, pixels, 0.02) <= 2000
    assert calls.count(4) == len(calls) > 2
    # Loops side by side: each waits as long, and all count.
    assert 1.5 < rate_in_threads([predict] * 4, pixels, 0.1) / rate_of(predict, pixels, 0.1) < 6


def test_flops_are_two_per_multiplication(run: Run) -> None:
    contender = contenders_from_run(run, ["resnet10t"])[0]
    model, counted = model_from_contender(contender), 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, torch.nn.Conv2d):
            counted += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            counted += 2 * module.weight.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert flops_of(contender, Path()) == counted > 1e6


def test_memory_is_what_the_model_adds_in_a_process_of_its_own(tmp_path: Path) -> None:
    weights = np.ones((32 * 32 * 3, 4000), dtype=np.float32)
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        heavy (uint8[batch, 32, 32, 3] PIXELS) => (float[batch, 4000] LOGITS) {
            floats = Cast<to = 1>(PIXELS)
            flat = Flatten(floats)
            LOGITS = MatMul(flat, weights)
        }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(model, tmp_path / "heavy.onnx")
    # What this process holds must not be counted.
    ballast = np.ones(60_000_000, dtype=np.float64)
    memory = memory_of_graph(tmp_path / "heavy.onnx", np.zeros((2, 32, 32, 3), dtype=np.uint8))
    assert memory.idle < ballast.nbytes / 1e6
    assert weights.nbytes / 1e6 < memory.peak - memory.idle < 5 * weights.nbytes / 1e6


def test_members_of_a_run_are_taken_by_architecture(run: Run) -> None:
    assert [one.name for one in contenders_from_run(run, [])] == [member.name for member in run.members()]
    assert [one.arch for one in contenders_from_run(run, ["resnet10t"])] == ["resnet10t"]
    with pytest.raises(
        MetadataError, match="no finished member of the architecture 'resnet18', only of regnetx_002, resnet10t"
    ):
        contenders_from_run(run, ["resnet10t", "resnet18"])


def test_checkpoints_predict_as_their_members(run: Run, tmp_path: Path) -> None:
    (member,) = contenders_from_run(run, ["resnet10t"])
    state = model_from_contender(member).model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    named = [str(member.source), f"resnet10t={tmp_path}/weights.safetensors", f"resnet10t={tmp_path}/weights.pt"]
    pixels = torch.from_numpy(np.array(run.pixels()[:2]))
    with torch.inference_mode():
        expected = model_from_contender(member)(pixels)
        for one in contenders_from_checkpoints(run, named):
            assert one.origin == "checkpoint"
            assert torch.equal(model_from_contender(one)(pixels), expected)


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("weights.pt", SettingsError, "expected ARCH=FILE or a member's folder"),
        ("=weights.pt", SettingsError, "expected ARCH=FILE or a member's folder"),
        ("resnet10=weights.pt", SettingsError, "timm has no architecture 'resnet10'"),
        ("resnet10t=weights.pt", MetadataError, "weights.pt is missing"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(run: Run, named: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        contenders_from_checkpoints(run, [named])


FIGURE = {"value": 0.9, "low": 0.85, "high": 0.95}
NONE = {"value": None, "low": None, "high": None}
RUNTIME_NAMES = ("pytorch", "onnx_fp32", "onnx_int8")


def comparison(names: tuple[str, ...]) -> Comparison:
    """A comparison with everything in it that may be missing."""
    spread = {"median": 2.0, "lowest": 1.5, "highest": 2.5}
    compared = [
        {
            "name": name,
            "arch": name,
            "origin": "checkpoint",
            "epochs": None,
            "training_s": None if index else 12.0,
            "metrics": dict.fromkeys(("accuracy", "precision", "recall", "f1"), FIGURE) | {"roc_auc": NONE},
            "accuracy": dict.fromkeys(RUNTIME_NAMES, FIGURE),
            "costs": {
                "key": "",
                "parameters": 1_000_000,
                "gflops": 0.5 + index,
                "size_mb": dict.fromkeys(RUNTIME_NAMES, 4.0 + index),
                "memory_mb": {runtime: {"idle": 80.0, "peak": 95.0} for runtime in RUNTIME_NAMES},
            },
            "speed": {runtime: {"latency_ms": spread, "images_per_s": spread} for runtime in RUNTIME_NAMES},
        }
        for index, name in enumerate(names)
    ]
    vote = {
        "members": names,
        "weights": (1 / len(names),) * len(names),
        "temperature": 1.0,
        "accuracy": FIGURE,
        "nll": FIGURE,
        "latency_ms": 4.0,
        "beside": names[:1],
        "accuracy_gained": {"value": 0.01, "low": 0.005, "high": 0.02},
        "nll_change": {"value": 0.0, "low": -0.1, "high": 0.1},
        "verdict": "worth its cost",
    }
    whole = Comparison.model_validate(
        {
            "data": "<digits>",
            "fingerprint": "0",
            "classes": 10,
            "height": 32,
            "width": 32,
            "images": {"train": 10, "validation": 5, "test": 5},
            "patients": 0,
            "draws": 1000,
            "drawn": "images",
            "seed": 0,
            "batch_size": 16,
            "turns": 5,
            "compared": compared,
            "votes": [vote] if len(names) > 1 else [],
            "front": [],
            "machine": {"processor": "this one", "cores": 2, "load_1min": 0.1},
            "versions": {"torch": "2"},
            "notes": ["mind <this>"],
        }
    )
    return whole.model_copy(update={"front": pareto_front(points_of(whole.compared, whole.votes))})


@pytest.mark.parametrize("names", [("alone",), ("one", "a$b", "a_very_long_architecture_name.with_a_tag")])
def test_all_files_are_written(names: tuple[str, ...], tmp_path: Path) -> None:
    whole = comparison(names)
    page = write_comparison(whole, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(COMPARISON_FILES)
    assert Comparison.model_validate_json((tmp_path / "comparison_results.json").read_bytes()) == whole
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison_results.csv").read_text())))
    assert [row["kind"] for row in rows] == ["architecture"] * len(names) + ["ensemble"] * (len(names) > 1)
    assert (rows[0]["training_s"], rows[0]["roc_auc"], rows[0]["latency_ms_onnx_int8"]) == ("12", "", "2")
    assert rows[-1].get("verdict") == ("worth its cost" if len(names) > 1 else None)
    text = (tmp_path / "comparison_report.txt").read_text()
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= 150
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 5
    # Everything is inside, and names are text.
    assert not re.search(r"https?:|<script|<link|<digits>|<this>", html)
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 200


def test_a_failed_plot_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, bytes]:
        raise MemoryError

    monkeypatch.setattr("plurum.benchmarks.compare.report.plots_from_comparison", broken)
    with pytest.raises(MemoryError):
        write_comparison(comparison(("one",)), tmp_path)
    assert not list(tmp_path.iterdir())
