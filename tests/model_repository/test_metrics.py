"""What the voter counts, and that nothing it does can abort Triton: real code, against a recorder of Triton's API."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from plurum.spec import Baseline, Ensemble, write_metadata
from plurum.voting import REVIEW_REASONS
from tests.model_repository.triton_recorder import Recorder, loaded
from tests.outliers.samples import outliers
from tests.sample_runs.fitted_run import CLASSES


@pytest.fixture
def module(recorder: Recorder) -> ModuleType:
    del recorder
    return loaded("voter/metrics.py")


@pytest.fixture
def folder(run: Any, tmp_path: Path) -> Path:
    """A voter's folder: metadata with a baseline of its own limits, and the precision of each member."""
    baseline = Baseline(
        images=40,
        class_shares=(0.1,) * 10,
        confidence_limits=(0.5, 0.9),
        confidence_shares=(0.2, 0.3, 0.5),
        review_share=0.25,
        dissent_shares=(0.05, 0.15),
    )
    ensemble: Ensemble = run.ensemble().model_copy(update={"baseline": baseline})
    write_metadata(tmp_path / "ensemble.json", ensemble)
    (tmp_path / "precisions.json").write_text(json.dumps({"resnet10t": "int8"}))
    return tmp_path


def answers(confidences: list[float], *, counted: bool = True) -> tuple[dict[str, Any], Any]:
    """Predictions of class 3 of ten; the first member agrees, the second predicts class 0."""
    size = len(confidences)
    probabilities = np.full((size, 10), 0.0)
    probabilities[:, 3] = confidences
    probabilities[:, 0] = 1 - probabilities[:, 3]
    members = np.zeros((size, 2, 10))
    members[:, 0, 3], members[:, 1, 0] = 1.0, 1.0
    label, review = np.full(size, 3), np.arange(size) == 0
    values = {"label": label, "probabilities": probabilities, "member_probabilities": members}
    return values | {"disagreement": np.zeros(size), "review": review}, np.full(size, counted)


def test_predictions_are_counted_in_batches_and_probes_are_not_counted(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    metrics = module.VoterMetrics(folder)
    metrics.observe(*answers([0.95, 0.6, 0.9]))
    metrics.observe(*answers([0.55], counted=False))
    metrics.observe(*answers([0.99]))
    metrics.close()
    release = hashlib.sha256((folder / "ensemble.json").read_bytes()).hexdigest()[:12]
    assert {dict(labels)["release"] for _, labels in recorder.page} == {release}
    assert recorder.value("plurum_predictions_total", **{"class": "three"}) == 4
    assert recorder.value("plurum_predictions_total", **{"class": "zero"}) == 0
    assert recorder.value("plurum_reviews_total") == 2
    assert recorder.value("plurum_member_dissents_total", member="resnet10t") == 0
    assert recorder.value("plurum_member_dissents_total", member="regnetx_002") == 4
    # The limits are the metadata's, and belong to the bins below them.
    counts = [recorder.value("plurum_confidence_bucket", le=limit) for limit in ("0.5", "0.9", "+Inf")]
    assert counts == [0, 2, 4]
    assert recorder.value("plurum_confidence_sum") == pytest.approx(0.95 + 0.6 + 0.9 + 0.99)
    assert recorder.value("plurum_batch_size_count") == 2
    assert recorder.value("plurum_batch_size_bucket", le="1.0") == 1
    assert recorder.value("plurum_disagreement_nats_bucket", le="0.001") == 4
    assert recorder.monotone


def test_a_cascades_predictions_are_counted_by_stage_and_dissents_of_members_that_ran(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    metadata = json.loads((folder / "ensemble.json").read_text())
    cascade = {"stages": [{"members": 1, "share": 0.75}]}
    (folder / "ensemble.json").write_text(json.dumps(metadata | {"cascade": cascade}))
    metrics = module.VoterMetrics(folder)
    predictions, counted = answers([0.95, 0.6, 0.9])
    used = np.array([[True, False], [True, True], [True, False]])
    predictions["member_probabilities"][~used] = 0.0
    metrics.observe(predictions | {"members_used": used}, counted)
    metrics.close()
    settled = [recorder.value("plurum_settled_total", **{"class": "three", "stage": stage}) for stage in ("1", "2")]
    assert settled == [2, 1]
    assert recorder.value("plurum_settled_total", **{"class": "zero", "stage": "1"}) == 0
    assert recorder.value("plurum_baseline_settled_share", stage="1") == 0.75
    # It differs from all predictions, but it ran for one.
    assert recorder.value("plurum_member_dissents_total", member="regnetx_002") == 1


def test_p_values_and_reasons_are_counted_with_an_outlier_test(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    metadata = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps(metadata | {"version": 2, "outliers": outliers()}))
    metrics = module.VoterMetrics(folder)
    predictions, counted = answers([0.95, 0.6, 0.9])
    tested = {"outlier": np.array([0.2, 1.0, 0.8]), "review_reason": np.array([5, 0, 4], dtype=np.uint8)}
    metrics.observe(predictions | tested, counted)
    metrics.close()
    reasons = {name: recorder.value("plurum_review_reasons_total", reason=name) for name in REVIEW_REASONS}
    assert reasons == {"confidence": 1, "set": 0, "outlier": 2}
    assert recorder.value("plurum_outlier_p_value_sum") == 2
    assert [recorder.value("plurum_outlier_p_value_bucket", le=limit) for limit in ("0.1", "0.2", "+Inf")] == [0, 1, 3]
    assert recorder.value("plurum_outlier_alpha") == 0.3
    assert recorder.value("plurum_outlier_reference_patients") == 4


def test_without_an_outlier_test_there_are_no_metrics_of_one(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    module.VoterMetrics(folder).close()
    assert not [name for name, _ in recorder.page if "outlier" in name or "reason" in name]


def test_metrics_describe_the_served_ensemble_and_its_baseline(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    module.VoterMetrics(folder).close()
    assert recorder.value("plurum_model_info", member="resnet10t", arch="resnet10t", precision="int8") == 1
    assert recorder.value("plurum_model_info", member="regnetx_002", precision="unknown") == 1
    assert recorder.value("plurum_ensemble_info", mode="soft", data="digits") == 1
    assert recorder.value("plurum_baseline_images") == 40
    assert [recorder.value("plurum_baseline_class_share", **{"class": name}) for name in CLASSES] == [0.1] * 10
    assert recorder.value("plurum_baseline_confidence_share", over="0.0", le="0.5") == 0.2
    assert recorder.value("plurum_baseline_confidence_share", over="0.9", le="+Inf") == 0.5
    assert recorder.value("plurum_baseline_review_share") == 0.25
    assert recorder.value("plurum_baseline_dissent_share", member="regnetx_002") == 0.15


def test_metadata_without_a_baseline_is_counted(module: ModuleType, recorder: Recorder, folder: Path) -> None:
    metadata = json.loads((folder / "ensemble.json").read_text())
    del metadata["baseline"]
    (folder / "ensemble.json").write_text(json.dumps(metadata))
    (folder / "precisions.json").unlink()
    metrics = module.VoterMetrics(folder)
    metrics.observe(*answers([0.95]))
    metrics.close()
    assert recorder.value("plurum_confidence_bucket", le="0.95") == 1
    assert not [name for name, _ in recorder.page if name.startswith("plurum_baseline")]


def test_audits_are_counted_where_they_are_drawn(module: ModuleType, recorder: Recorder, folder: Path) -> None:
    metrics = module.VoterMetrics(folder)
    metrics.observe(*answers([0.95]))
    metrics.close()
    assert not [name for name, _ in recorder.page if name == "plurum_audits_total"]
    metadata = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps(metadata | {"version": 2, "audit_rate": 0.5}))
    metrics = module.VoterMetrics(folder)
    for counted in (True, False):
        values, rows = answers([0.95, 0.6, 0.9], counted=counted)
        metrics.observe(values | {"audit": np.array([True, False, True])}, rows)
    metrics.close()
    assert recorder.value("plurum_audits_total") == 2


def test_under_load_metrics_are_updated_at_most_once_a_second(
    module: ModuleType, recorder: Recorder, folder: Path
) -> None:
    metrics = module.VoterMetrics(folder)
    counts: list[float] = []
    for _ in range(200):
        metrics.observe(*answers([0.95]))
        time.sleep(0.001)
        if not counts or counts[-1] != recorder.value("plurum_confidence_count"):
            counts.append(recorder.value("plurum_confidence_count"))
    deadline = time.monotonic() + 2
    while recorder.value("plurum_confidence_count") < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorder.value("plurum_confidence_count") == 200
    assert len(counts) < 100
    metrics.close()
