"""Print how many cells of the matrix are equal, refused and different: `python -m tests.pixel_matrix [--list]`."""

from __future__ import annotations

import sys
import warnings

from tests.pixel_matrix.cell import outcomes_of, table_of
from tests.pixel_matrix.jpeg_cells import jpeg_cells
from tests.pixel_matrix.png_cells import png_cells
from tests.pixel_matrix.tiff_cells import tiff_cells
from tests.pixel_matrix.window_cells import window_cells

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    outcomes = outcomes_of([*jpeg_cells(), *png_cells(), *tiff_cells(), *window_cells()])
    if "--list" in sys.argv:
        sys.stdout.write("\n".join(f"{name}: {text}" for name, text in outcomes.items()) + "\n")
    sys.stdout.write(table_of(outcomes) + "\n")
