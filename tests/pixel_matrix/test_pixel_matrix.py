"""Every kind of file is read as an independent reader reads it, or refused by name; none differs silently.

`python -m tests.pixel_matrix` prints the table, and with `--list` each cell.
"""

from __future__ import annotations

import pytest

from tests.pixel_matrix.cell import outcomes_of
from tests.pixel_matrix.jpeg_cells import jpeg_cells
from tests.pixel_matrix.png_cells import png_cells
from tests.pixel_matrix.tiff_cells import tiff_cells
from tests.pixel_matrix.window_cells import window_cells

# At least so many are equal: refusing everything would not do.
_CELLS = {"JPEG": (jpeg_cells, 245), "PNG": (png_cells, 341), "TIFF": (tiff_cells, 714), "windows": (window_cells, 337)}


@pytest.mark.parametrize("kind", _CELLS)
def test_no_cell_differs(kind: str) -> None:
    cells, least = _CELLS[kind]
    outcomes = outcomes_of(cells())
    assert not {name: text for name, text in outcomes.items() if text.startswith("DIFFERENT")}
    assert sum(text == "equal" for text in outcomes.values()) >= least
