"""Tissue: Otsu's threshold, and the fallback without two kinds of pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from plurum.slides.tissue import otsu_threshold, tissue_mask, tissue_share

GLASS, GREY_GLASS, PINK, PALE, PURPLE = (
    (236, 234, 238),
    (206, 204, 200),
    (210, 140, 180),
    (226, 190, 214),
    (90, 40, 130),
)


def slide_of(*parts: tuple[tuple[int, int, int], int], noise: int = 4) -> npt.NDArray[np.uint8]:
    """Return rows of each colour, with a little noise."""
    rows = np.concatenate([np.tile(np.array(colour), (count, 100, 1)) for colour, count in parts])
    noisy = rows + np.random.default_rng(0).integers(-noise, noise + 1, rows.shape)
    return np.asarray(np.clip(noisy, 0, 255), dtype=np.uint8)


def test_otsu_parts_where_the_variance_between_is_largest() -> None:
    values = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8) // np.uint8(2)

    def between(threshold: int) -> float:
        low, high = values[values <= threshold].astype(float), values[values > threshold].astype(float)
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)

    best = max(range(int(values.min()), int(values.max())), key=between)
    found = otsu_threshold(values)
    assert found is not None
    assert between(found) == pytest.approx(between(best))


def test_otsu_takes_the_middle_between_two_peaks_and_none_of_one() -> None:
    assert otsu_threshold(np.array([10] * 50 + [101] * 20, dtype=np.uint8)) == 55
    assert otsu_threshold(np.array([7, 7, 7], dtype=np.uint8)) is None
    assert otsu_threshold(np.array([], dtype=np.uint8)) is None


@pytest.mark.parametrize(
    ("parts", "tissue"),
    [
        ([(GLASS, 70), (PINK, 30)], [False, True]),
        ([(GLASS, 97), (PINK, 3)], [False, True]),
        # Glass that the fixed rule would take for tissue.
        ([(GREY_GLASS, 70), (PINK, 30)], [False, True]),
        # Dark tissue does not turn pale tissue into glass.
        ([(GLASS, 30), (PINK, 30), (PURPLE, 40)], [False, True, True]),
        ([(GLASS, 100)], [False]),
        ([(PINK, 60), (PURPLE, 40)], [True, True]),
        ([(PALE, 100)], [True]),
        # Unscanned areas.
        ([((0, 0, 0), 50), (GLASS, 30), (PINK, 20)], [False, False, True]),
        ([((0, 0, 0), 100)], [False]),
    ],
)
def test_the_threshold_adapts_to_the_glass_of_the_slide(
    parts: list[tuple[tuple[int, int, int], int]], tissue: list[bool]
) -> None:
    mask = tissue_mask(slide_of(*parts))
    expected = np.repeat(tissue, [count for _, count in parts])
    assert (mask == expected[:, None]).mean() > 0.995


def test_grey_slides_and_opacity() -> None:
    grey = slide_of((GLASS, 60), (PURPLE, 40))[..., 1]
    np.testing.assert_array_equal(tissue_mask(grey), np.repeat([False, True], [60, 40])[:, None].repeat(100, axis=1))
    clear = np.dstack([slide_of((GLASS, 60), (PINK, 40)), np.zeros((100, 100), np.uint8)])
    np.testing.assert_array_equal(tissue_mask(clear), tissue_mask(clear[..., :3]))


def test_the_share_of_a_rectangle_is_of_the_cells_it_covers() -> None:
    mask = np.zeros((10, 10), dtype=np.bool_)
    mask[:5] = True
    assert tissue_share(mask, 8.0, (0, 0, 80, 80)) == 0.5
    assert tissue_share(mask, 8.0, (0, 32, 16, 16)) == 0.5
    assert tissue_share(mask, 8.0, (79, 79, 1, 1)) == 0
