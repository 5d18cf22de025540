"""A small repository of two classes whose members are linear functions of an image's mean colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plurum.export import repository_from_onnx
from plurum.spec import Ensemble

__all__ = ["linear_repository"]

_SHA = "0" * 64
_IMAGE = {"height": 8, "width": 8, "mean": [0.5] * 3, "std": [0.2] * 3}


def _write_graph(path: Path, seed: int) -> None:
    """Write a member that is a linear function of the mean colour."""
    weights = np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32) / 64
    nodes = [
        helper.make_node("Cast", ["PIXELS"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["LOGITS"]),
    ]
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _ensemble(audit_rate: float | None) -> Ensemble:
    about = {"arch": "linear", "sha256": _SHA, "classes": ["CE", "LAA"], "image": _IMAGE, "parameters": 6}
    return Ensemble.model_validate(
        {
            "version": 1 if audit_rate is None else 2,
            "name": "audited",
            "classes": ["CE", "LAA"],
            "image": _IMAGE,
            "members": [{"name": name, **about} for name in ("one", "two")],
            "voting": {"weights": [0.5, 0.5]},
            "data": {"data": "none", "fingerprint": _SHA, "images": {"train": 1, "validation": 1, "test": 1}},
            "scores": {},
            "audit_rate": audit_rate,
        }
    )


def linear_repository(folder: Path, audit_rate: float | None, *, fused: bool) -> Path:
    """Write a repository of two members and two classes, and return its path.

    Args:
        folder: Existing folder.
        audit_rate: Probability with which images are drawn for audit; None draws none.
        fused: If True, add the fused graph.
    """
    graphs = {name: folder / f"{name}.onnx" for name in ("one", "two")}
    for seed, path in enumerate(graphs.values()):
        _write_graph(path, seed)
    repository_from_onnx(_ensemble(audit_rate), graphs, folder / "repository", 8, form="chain", fused=fused)
    return folder / "repository"
