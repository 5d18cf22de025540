"""Draws for audit: their rate, and what they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.model_repository.triton_recorder import loaded

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return loaded("voter/audit.py")


def test_the_rate_is_that_of_the_draws(module: ModuleType) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4000, 2, 2, 3), dtype=np.uint8)
    drawn = module.AuditDraw(0.02, KEY).draw(images, ())
    assert (drawn.dtype, drawn.shape) == (np.bool_, (4000, 1))
    # Four standard deviations of the binomial distribution.
    assert abs(drawn.mean() - 0.02) < 4 * np.sqrt(0.02 * 0.98 / 4000)
    assert module.AuditDraw(1.0, KEY).draw(images, ()).all()
    # Draws at a higher rate hold those at a lower one.
    assert (module.AuditDraw(0.1, KEY).draw(images, ()) >= drawn).all()


def test_a_draw_depends_only_on_the_image_and_the_key(module: ModuleType) -> None:
    images = np.random.default_rng(1).integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    draw = module.AuditDraw(0.5, KEY)
    together = draw.draw(images, ())
    alone = np.concatenate([draw.draw(images[row : row + 1], ()) for row in range(len(images))])
    np.testing.assert_array_equal(together, alone)
    # Also from memory in another order.
    np.testing.assert_array_equal(draw.draw(np.asfortranarray(images), ()), together)
    assert (module.AuditDraw(0.5, KEY[::-1]).draw(images, ()) != together).any()


def test_a_patient_is_drawn_as_a_whole(module: ModuleType) -> None:
    images = np.random.default_rng(2).integers(0, 256, (300, 2, 2, 3), dtype=np.uint8)
    draw, names = module.AuditDraw(0.5, KEY), [f"patient {row // 3}" for row in range(300)]
    drawn = draw.draw(images, names).reshape(-1, 3)
    assert (drawn == drawn[:, :1]).all()
    assert 0 < drawn.mean() < 1
    # An image of an unknown patient is drawn by itself, and a list that does not fit the images is ignored.
    by_image = draw.draw(images, ())
    np.testing.assert_array_equal(draw.draw(images, [""] * 300), by_image)
    np.testing.assert_array_equal(draw.draw(images, names[:7]), by_image)


@pytest.mark.parametrize(
    ("parameters", "patients"),
    [
        (json.dumps({"patients": json.dumps(["ann", None, ""])}), ["ann", "", ""]),
        (json.dumps({"patients": json.dumps([7])}), ["7"]),
        (json.dumps({"patients": json.dumps([" ann\n", " "])}), ["ann", ""]),
        (json.dumps({"patients": "ann"}), []),
        (json.dumps({"patients": 3}), []),
        (json.dumps({"patients": json.dumps({"a": 1})}), []),
        (json.dumps({"other": "x"}), []),
        ("{}", []),
        ("", []),
        (json.dumps({"patients": "[" * 100_000}), []),
    ],
)
def test_parameters_of_clients_never_fail(module: ModuleType, parameters: str, patients: list[str]) -> None:
    assert module.patients_from_parameters(parameters) == patients


def test_a_folder_without_audits_draws_none(module: ModuleType, tmp_path: Path) -> None:
    assert module.draw_from_folder(tmp_path) is None
    (tmp_path / "audit.json").write_text(json.dumps({"rate": 1.0, "key": KEY.hex()}))
    assert module.draw_from_folder(tmp_path).draw(np.zeros((1, 2, 2, 3), np.uint8), ()).all()
