"""What lies on disk as JSON or CSV and may be a stranger's, broken at random: read as it is meant, or one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.client.bulk.journal import Journal
from plurum.client.bulk.listing import Listing
from plurum.export.engines.build import read_plan
from plurum.export.manifest import ExportManifest, read_manifest
from plurum.repository.probes import read_recorded_probes
from plurum.run import Run
from plurum.serving.releases.rehearsal import check_artefacts
from plurum.serving.releases.releases import Releases
from plurum.spec import Ensemble, read_ensemble, read_member
from plurum.training.data.report import read_data_report, report_lines
from plurum.training.learning.history import Epoch, read_history
from plurum.training.learning.plan import unfinished_members
from plurum.voting import decide
from tests.fuzz.mutations import Fuzz, broken_bytes, broken_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_SHA256 = "0" * 64
_CLASSES = ["CE", "LAA", "other"]
_IMAGE = {"height": 8, "width": 8, "colour": "rgb", "resize": "crop", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
_SCORES = {"images": 9, "accuracy": 0.5, "nll": 0.7}


def _member(name: str) -> dict[str, Any]:
    return {
        "version": 1,
        "name": name,
        "arch": "resnet18",
        "checkpoint": "checkpoint.safetensors",
        "sha256": _SHA256,
        "classes": _CLASSES,
        "image": _IMAGE,
        "parameters": 11,
        "seed": 0,
        "precision": "fp32",
        "epochs": 2,
        "best_epoch": 1,
        "validation": _SCORES,
    }


def _ensemble(voting: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "two",
        "classes": _CLASSES,
        "image": _IMAGE,
        "members": [_member("a"), _member("b")],
        "voting": voting,
        "conformal": {"alpha": 0.1, "quantiles": [0.5, 0.6, 0.7]},
        "patient_rule": "mean",
        "review": {"threshold": 0.6, "risk": 0.05},
        "scores": {"test": _SCORES},
        "data": {"data": "digits", "fingerprint": _SHA256, "images": {"train": 3}},
        "baseline": {
            "images": 9,
            "class_shares": [0.5, 0.25, 0.25],
            "confidence_limits": [0.5, 0.9],
            "review_share": 0.1,
            "confidence_shares": [0.2, 0.3, 0.5],
            "dissent_shares": [0.1, 0.2],
        },
    }


_VOTINGS: tuple[dict[str, Any], ...] = (
    {"mode": "soft", "weights": [0.25, 0.75], "temperature": 1.5, "prior_ratio": [1.0, 2.0, 0.5]},
    {"mode": "hard", "weights": [0.5, 0.5]},
    {
        "mode": "stack",
        "weights": [0.5, 0.5],
        "coefficients": [[0.1, -0.2, 0.3, 0.4, 0.5, 0.6]] * 3,
        "intercepts": [0.0, 0.1, -0.1],
    },
)


def test_ensembles(tmp_path: Path) -> None:
    fuzz, path = Fuzz("ensemble.json"), tmp_path / "ensemble.json"
    votes = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 2))
    for draw in fuzz.draws():
        content = broken_json(draw, _ensemble(draw.choice(_VOTINGS)))
        path.write_bytes(content)
        ensemble: Ensemble | None = fuzz.fed(lambda: read_ensemble(path), content)
        if ensemble is None or (len(ensemble.members), len(ensemble.classes)) != (2, 3):
            continue
        # What is taken can vote.
        verdict = decide(votes, ensemble.rule)
        assert np.isfinite(verdict.probabilities).all(), f"{fuzz}: {content!r}"
        np.testing.assert_allclose(verdict.probabilities.sum(axis=1), 1, atol=1e-5, err_msg=f"{fuzz}: {content!r}")


def test_members(tmp_path: Path) -> None:
    fuzz, path = Fuzz("member.json"), tmp_path / "member.json"
    for draw in fuzz.draws():
        content = broken_json(draw, _member("a"))
        path.write_bytes(content)
        fuzz.fed(lambda: read_member(path), content)


def _count(images: int) -> dict[str, dict[str, int]]:
    return {split: {"images": images, "patients": 1} for split in ("train", "validation", "test")}


_ITEM = {"source": "a.png", "label": "CE", "split": "train"}
_DOCUMENTS: dict[str, Any] = {
    "data/contract.json": {
        "version": 1,
        "source": "digits",
        "fingerprint": _SHA256,
        "source_fingerprint": _SHA256,
        "classes": _CLASSES,
        "image": _IMAGE,
    },
    "data/report.json": {
        "version": 1,
        "source": "digits",
        "classes": _CLASSES,
        "counts": {"CE": _count(2)},
        "splits": _count(6),
        "width": {"lowest": 8, "median": 9.5, "highest": 11},
        "height": {"lowest": 8, "median": 8, "highest": 8},
        "duplicates": {"train": 1},
        "across_splits": [[_ITEM, _ITEM | {"split": "test"}]],
        "other_label": [],
        "divided_patients": {"p": ["train", "test"]},
        "unreadable": [{"source": "b.png", "reason": "broken"}],
        "notes": ["not read: 1 .nii"],
    },
    "run.json": {"version": 1, "data": "digits", "settings": {"archs": ["resnet18"], "epochs": 2, "seed": 1}},
    "export.json": {
        "version": 1,
        "inputs": _SHA256,
        "target": "cpu",
        "max_batch_size": 4,
        "versions": {"plurum": "0.1"},
        "artefacts": [
            {
                "model": "a",
                "file": "a/1/model.onnx",
                "sha256": _SHA256,
                "size_bytes": 3,
                "precision": "fp32",
                "backend": "onnxruntime",
                "reason": "asked for",
                "latency_ms": {"fp32": 1.5},
            }
        ],
        "files": {"a/1/model.onnx": _SHA256},
    },
    "parity.json": {"artefacts": [{"subject": "a", "faults": []}]},
    "questions.json": {"version": 1, "probabilities": [[0.5, 0.5]], "tolerance": 0.001},
    "model.plan.json": {
        "version": 1,
        "tensorrt": "10.0",
        "compute_capability": "8.9",
        "onnx_sha256": _SHA256,
        "plan_sha256": _SHA256,
        "profile": [1, 2, 4],
        "flags": ["STRONGLY_TYPED"],
    },
    "state.json": {"current": "0123abcd", "previous": None, "trial": {"release": "4567cdef", "percent": 5.0}},
}


def _readers(folder: Path) -> dict[str, Callable[[], Any]]:
    run = Run(folder)

    def exported() -> ExportManifest:
        check_artefacts(folder)
        return read_manifest(folder)

    return {
        "data/contract.json": run.data,
        "data/report.json": lambda: report_lines(read_data_report(run)),
        "run.json": lambda: unfinished_members(run),
        "export.json": exported,
        "parity.json": lambda: check_artefacts(folder),
        "questions.json": lambda: read_recorded_probes(folder),
        "model.plan.json": lambda: read_plan(folder / "model.plan"),
        "state.json": lambda: Releases(folder).state(),
    }


def test_every_other_document(tmp_path: Path) -> None:
    fuzz, readers = Fuzz("other documents"), _readers(tmp_path)
    (tmp_path / "data").mkdir()
    for name, document in _DOCUMENTS.items():
        (tmp_path / name).write_text(json.dumps(document))
    for draw in fuzz.draws():
        name = draw.choice(list(_DOCUMENTS))
        content = broken_json(draw, _DOCUMENTS[name])
        (tmp_path / name).write_bytes(content)
        fuzz.fed(readers[name], name.encode() + b": " + content)
        (tmp_path / name).write_text(json.dumps(_DOCUMENTS[name]))


def test_tables_of_runs(tmp_path: Path) -> None:
    fuzz, run = Fuzz("items.csv and history.csv"), Run(tmp_path)
    run.data_folder.mkdir()
    (run.data_folder / "contract.json").write_text(json.dumps(_DOCUMENTS["data/contract.json"]))
    np.save(run.data_folder / "pixels.npy", np.zeros((2, 8, 8, 3), np.uint8))
    file = io.StringIO(newline="")
    rows = [[0, "a.png", "CE", "p", "train"], [1, "b.png", "LAA", "", "test"]]
    csv.writer(file).writerows([["index", "source", "label", "patient", "split"], *rows])
    history = ",".join(one.name for one in fields(Epoch)) + "\r\n1,0.5,0.9,0.5,0.001,1.5,80.0,3.0\r\n"
    pixels = (run.data_folder / "pixels.npy").read_bytes()
    for draw in fuzz.draws():
        content = broken_bytes(draw, pixels[:128], 2) + pixels[128:]
        (run.data_folder / "pixels.npy").write_bytes(content)
        array = fuzz.fed(run.pixels, content)
        if array is not None:
            assert (array.dtype, array.ndim, array.shape[3]) == (np.uint8, 4, 3), f"{fuzz}: {content!r}"
        (run.data_folder / "pixels.npy").write_bytes(pixels)
        content = broken_bytes(draw, file.getvalue().encode())
        (run.data_folder / "items.csv").write_bytes(content)
        table = fuzz.fed(run.table, content)
        if table is not None:
            assert len(table.sources) == len(table.patients) == len(table.splits) == len(table.labels) == 2
            assert all(isinstance(one, str) for one in (*table.sources, *table.patients))
        content = broken_bytes(draw, history.encode())
        (tmp_path / "history.csv").write_bytes(content)
        fuzz.fed(lambda: read_history(tmp_path / "history.csv"), content)


def test_journals_of_predict(tmp_path: Path) -> None:
    fuzz, out = Fuzz("journals"), tmp_path / "answers.csv"
    hidden = tmp_path / ".answers.csv.partial"
    listing, about = Listing(), {"classes": _CLASSES, "format": ".csv"}
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
        listing.add(str(tmp_path / name))
    lines = [about, *([str(tmp_path / name), 0, 0, "CE", False, f"{name},CE"] for name in ("a.png", "b.png"))]
    whole = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    for draw in fuzz.draws():
        document = json.loads(json.dumps(lines))
        content = broken_bytes(draw, whole) if draw.random() < 0.5 else _lines_of(broken_json(draw, document))
        hidden.write_bytes(content)

        def resumed() -> list[Any]:
            with Journal(out, listing, about) as journal:
                return list(journal.entries())

        for _, _, entry in fuzz.fed(resumed, content) or ():
            assert entry.label is None or isinstance(entry.label, str), f"{fuzz}: {content!r}"
            assert isinstance(entry.body, str), f"{fuzz}: {content!r}"


def _lines_of(content: bytes) -> bytes:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    lines = document if isinstance(document, list) else [document]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
