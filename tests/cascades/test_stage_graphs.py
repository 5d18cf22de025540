"""The graphs of a cascade answer what `decide_cascade` answers, by every library and in every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plurum.export.graphs.runtimes import GraphRunner, onnx_stage, openvino_stage
from plurum.export.graphs.stages import outputs_of_stages, stages_from_onnx, verdict_from_stages, whole_from_onnx
from plurum.export.repository.configs import stage_files
from plurum.onnx_graphs.stages import run_stages
from plurum.predictions.outputs import OUTPUTS, graph_outputs
from plurum.spec import Ensemble
from plurum.voting import CascadeVerdict
from tests.cascades.linear_cascade import CLASSES, ENSEMBLES, PIXELS, cascade_of, expected_verdict, write_members

Tensors = dict[str, npt.NDArray[Any]]


def write_stages(ensemble: Ensemble, folder: Path) -> list[Path]:
    """Write the graphs of the cascade's stages, and return their paths."""
    paths = [folder / name for name in stage_files(ensemble)]
    stages_from_onnx([*write_members(folder, ensemble).values()], cascade_of(ensemble), len(CLASSES), paths)
    return paths


def check(found: Tensors, expected: CascadeVerdict) -> None:
    values = vars(expected.verdict) | {"members_used": expected.members_used, "index": expected.verdict.label}
    for name, array in found.items():
        one = OUTPUTS["LABEL" if name == "INDEX" else name]
        np.testing.assert_allclose(
            array[:, 0] if one.is_scalar else array, values[name.lower()], atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("library", [onnx_stage, openvino_stage])
@pytest.mark.parametrize("ensemble", ENSEMBLES.values(), ids=ENSEMBLES)
def test_stages_answer_as_the_reference(
    ensemble: Ensemble, library: Callable[[Path], GraphRunner], tmp_path: Path
) -> None:
    """Each image alone, in mixed batches, and all at once."""
    stages = [library(path) for path in write_stages(ensemble, tmp_path)]
    outputs = graph_outputs(has_outliers=ensemble.outliers is not None, has_cascade=True)
    expected = expected_verdict(ensemble, PIXELS)
    # Images leave at each stage.
    assert set(expected.stage.tolist()) == set(range(len(stages)))

    def run(rows: slice, is_full: Sequence[bool]) -> Tensors:
        return dict(run_stages(stages, {"PIXELS": PIXELS[rows]}, np.array(is_full), outputs))

    for size in (1, 5, len(PIXELS)):
        parts = [run(slice(at, at + size), [False] * len(PIXELS[at : at + size])) for at in range(0, len(PIXELS), size)]
        check({name: np.concatenate([part[name] for part in parts]) for name in outputs}, expected)
    check(run(slice(None), [True] * len(PIXELS)), expected_verdict(ensemble, PIXELS, full=True))
    mixed = run(slice(None), [True, False] * (len(PIXELS) // 2))
    check({name: array[1::2] for name, array in mixed.items()}, expected_verdict(ensemble, PIXELS[1::2]))
    check({name: array[::2] for name, array in mixed.items()}, expected_verdict(ensemble, PIXELS[::2], full=True))


def test_only_images_in_doubt_reach_the_next_stage(tmp_path: Path) -> None:
    ensemble = ENSEMBLES["three stages with detectors"]
    stages = [onnx_stage(path) for path in write_stages(ensemble, tmp_path)]
    sizes: list[int] = []

    def counted(stage: GraphRunner) -> GraphRunner:
        def infer(tensors: Tensors) -> Tensors:
            sizes.append(len(tensors["PIXELS"]))
            return stage(tensors)

        return infer

    outputs = graph_outputs(has_outliers=True, has_cascade=True)
    run_stages([counted(one) for one in stages], {"PIXELS": PIXELS}, np.zeros(len(PIXELS), np.bool_), outputs)
    stage_of = expected_verdict(ensemble, PIXELS).stage
    assert sizes == [len(PIXELS), np.count_nonzero(stage_of > 0), np.count_nonzero(stage_of > 1)]
    settled = PIXELS[stage_of == 0]
    sizes.clear()
    run_stages([counted(one) for one in stages], {"PIXELS": settled}, np.zeros(len(settled), np.bool_), outputs)
    assert sizes == [len(settled)]


def test_the_stages_verdict_is_the_references(tmp_path: Path) -> None:
    """Certification reads the verdict of the stages' graphs, whose outputs cover all images."""
    for ensemble in ENSEMBLES.values():
        found = verdict_from_stages(outputs_of_stages(write_stages(ensemble, tmp_path), PIXELS))
        expected = expected_verdict(ensemble, PIXELS)
        np.testing.assert_array_equal(found.stage, expected.stage)
        np.testing.assert_array_equal(found.members_used, expected.members_used)
        for name, values in vars(expected.verdict).items():
            np.testing.assert_allclose(getattr(found.verdict, name), values, atol=1e-5, err_msg=name)


def test_a_members_nan_does_not_leave(tmp_path: Path) -> None:
    ensemble = ENSEMBLES["one, then all"]
    broken = np.array([False, False, True])
    paths = [tmp_path / name for name in stage_files(ensemble)]
    graphs = [*write_members(tmp_path, ensemble, broken).values()]
    stages_from_onnx(graphs, cascade_of(ensemble), len(CLASSES), paths)
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    first, last = outputs_of_stages(paths, white)
    assert first["LEAVE"].tolist() == [[False]]
    assert np.isnan(last["MEMBER_PROBABILITIES"]).all(axis=2).tolist() == [[False, False, True]]


def test_the_whole_graph_runs_all_members(tmp_path: Path) -> None:
    """Other backends than Plurum's serve the whole vote."""
    ensemble = ENSEMBLES["three stages with detectors"]
    graphs = [*write_members(tmp_path, ensemble).values()]
    whole_from_onnx(graphs, ensemble.rule, len(CLASSES), tmp_path / "model.onnx")
    found = onnx_stage(tmp_path / "model.onnx")({"PIXELS": PIXELS})
    check(found, expected_verdict(ensemble, PIXELS, full=True))
