"""Ensembles of three small members with a cascade, and the reference for their predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plurum.predictions.arrays import Bools, Bytes, Floats
from plurum.spec import Ensemble
from plurum.voting import Cascade, CascadeVerdict, cascade_from_ensemble, decide_cascade, softmax

__all__ = ["CLASSES", "ENSEMBLES", "PIXELS", "cascade_of", "expected_verdict", "write_members"]

_RNG = np.random.default_rng(0)
# The mean colour differs from image to image, so that some leave early.
PIXELS: Bytes = (_RNG.integers(0, 200, (48, 1, 1, 3)) + _RNG.integers(0, 56, (48, 8, 8, 3))).astype(np.uint8)
CLASSES = ("CE", "LAA", "none")
_NAMES = ("one", "two", "three")
_SHA = "0" * 64
_IMAGE = {"height": 8, "width": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
_REFERENCE = sorted(_RNG.normal(scale=2, size=50).tolist())
_SETS = {"conformal": {"alpha": 0.1, "quantiles": [0.5, 0.6, 0.4]}}
_COSTS = {"criterion": "costs", "costs": [[0, 2, 1], [1, 0, 1], [1, 1, 0]], "review_cost": 0.6}


def _outliers(detecting: tuple[bool, ...], alpha: float) -> dict[str, Any]:
    return {
        "alpha": alpha,
        "members": detecting,
        "detectors": [_SHA if has else None for has in detecting],
        "weights": [has / sum(detecting) for has in detecting],
        "reference": _REFERENCE,
        "patients": len(_REFERENCE),
        "split": "calibration",
    }


def _stage(weights: list[float], leave: float, **rule: Any) -> dict[str, Any]:
    voting = {"weights": weights, "temperature": rule.pop("temperature", 1.3)}
    return {"members": len(weights), "voting": voting, "leave": float(np.float32(leave)), "share": 0.5, **rule}


def _ensemble(order: list[int], stages: list[dict[str, Any]], **rule: Any) -> Ensemble:
    about = {"arch": "linear", "sha256": _SHA, "classes": CLASSES, "image": _IMAGE, "parameters": 12}
    cost = {"value": 0.6, "low": 0.5, "high": 0.7}
    return Ensemble.model_validate(
        {
            "version": 2,
            "name": "cascade",
            "classes": CLASSES,
            "image": _IMAGE,
            "members": [{"name": name, **about} for name in _NAMES],
            "voting": {"weights": [0.5, 0.3, 0.2], **rule.pop("voting", {})},
            "data": {"data": "none", "fingerprint": _SHA, "images": {"train": 1, "validation": 1, "test": 1}},
            "scores": {},
            "cascade": {"order": order, "stages": stages, "costs": [0.5, 0.3, 0.2], "cost": cost},
            **rule,
        }
    )


ENSEMBLES = {
    "one, then all": _ensemble([2, 0, 1], [_stage([1.0], 0.5, **_SETS)], review={"threshold": 0.4}, **_SETS),
    "agreement at a point": _ensemble(
        [2, 0, 1],
        [_stage([0.4, 0.6], 0.5, temperature=0.8)],
        operating_point=_COSTS,
        voting={"prior_ratio": [1.2, 0.9, 0.9]},
    ),
    "three stages with detectors": _ensemble(
        [1, 2, 0],
        [
            _stage([1.0], 0.6, outliers=_outliers((True,), 0.1), **_SETS),
            _stage([0.6, 0.4], 0.45, outliers=_outliers((True, False), 0.1), **_SETS),
        ],
        outliers=_outliers((True, True, False), 0.05),
        review={"threshold": 0.4},
        **_SETS,
    ),
}


# A stage without a test of its own, whose member has a detector; and one whose member has none.
ENSEMBLES |= {
    f"no test before the vote, from {name}": _ensemble(
        order,
        [_stage([1.0], 0.5, **_SETS)],
        outliers=_outliers((True, True, False), 0.05),
        review={"threshold": 0.4},
        **_SETS,
    )
    for name, order in (("a detector", [0, 2, 1]), ("none", [2, 1, 0]))
}


def cascade_of(ensemble: Ensemble) -> Cascade:
    """Return the cascade of an ensemble that has one."""
    cascade = cascade_from_ensemble(ensemble.model_dump())
    assert cascade is not None
    return cascade


def _weights(member: int) -> tuple[Floats, Floats]:
    """Return weights and offsets of a member's logits and novelty, as functions of the mean colour."""
    weights = np.random.default_rng(member).normal(scale=1 / 40, size=(3, len(CLASSES) + 1))
    return weights, -128 * weights.sum(axis=0)


def write_members(folder: Path, ensemble: Ensemble, broken: Bools | None = None) -> dict[str, Path]:
    """Write the graphs of the members to `folder`, and return their paths by name.

    Args:
        folder: Existing folder.
        ensemble: One of `ENSEMBLES`.
        broken: True for each member whose logits are NaN for images that are almost white; None breaks none.
    """
    return {
        name: _write_member(
            folder / f"{name}.onnx", index, has_detector=has, is_broken=broken is not None and broken[index]
        )
        for index, (name, has) in enumerate(zip(_NAMES, ensemble.detecting, strict=True))
    }


def _write_member(path: Path, index: int, *, has_detector: bool, is_broken: bool) -> Path:
    weights, offsets = _weights(index)
    nodes = [
        helper.make_node("Cast", ["PIXELS"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        # The root of a negative number is NaN.
        helper.make_node("Sub", ["limit", "mean"], ["below"]),
        helper.make_node("Sqrt", ["below"], ["root"]),
        helper.make_node("Sub", ["root", "root"], ["zero_or_nan"]),
        helper.make_node("Add", ["mean", "zero_or_nan"], ["seen"]),
        helper.make_node("Gemm", ["seen", "weights", "offsets"], ["all"]),
        helper.make_node("Split", ["all", "sizes"], ["LOGITS", "NOVELTY"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", len(CLASSES)])]
    if has_detector:
        outputs.append(helper.make_tensor_value_info("NOVELTY", TensorProto.FLOAT, ["batch", 1]))
    constants = {
        "weights": weights.astype(np.float32),
        "offsets": offsets.astype(np.float32),
        "axes": np.array([1, 2]),
        "sizes": np.array([len(CLASSES), 1]),
        "limit": np.array([254 if is_broken else 256], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 8, 8, 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def expected_verdict(ensemble: Ensemble, pixels: Bytes, *, full: bool = False) -> CascadeVerdict:
    """Return the reference for images, uint8 `[images, 8, 8, 3]`."""
    mean = pixels.mean(axis=(1, 2))
    found = np.stack([mean @ weights + offsets for weights, offsets in map(_weights, range(len(_NAMES)))], axis=1)
    novelty = found[..., -1] if ensemble.outliers else None
    return decide_cascade(softmax(found[..., :-1]), cascade_of(ensemble), novelty, full=full)
