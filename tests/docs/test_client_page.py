"""Run the Python of docs/client.md unchanged, against a real server."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plurum.client
from plurum.run import Run
from plurum.serving import Server
from tests.docs.pages import blocks, run_python

# The functions for slides have their own page and test.
OF_SLIDES = {"heat_map", "predict_slide", "write_slide"}
EXAMPLES = blocks("client.md", "python")


def test_every_public_function_has_an_example() -> None:
    shown = ("Client", "Pool", "Tls")
    functions = [name for name in plurum.client.__all__ if name[0].islower() or name.endswith(shown)]
    functions = [name for name in functions if name not in OF_SLIDES]
    assert len(functions) == 14
    assert [name for name in functions if not any(re.search(rf"\b{name}\(", example) for example in EXAMPLES)] == []


@pytest.mark.triton
def test_the_examples_run(served: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for index, pixels in enumerate(np.array(run.pixels()[:3])):
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{index}.png")
    (tmp_path / "scans" / "bad.png").write_text("no image")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.array(run.pixels()[0])).save(tmp_path / "scan.png")
    Image.fromarray(np.array(run.pixels()[1])).save(tmp_path / "more" / "scan.png")
    said = []
    for example in EXAMPLES:
        code = example.replace("127.0.0.1:8001", served.urls.grpc)
        said.append(run_python(code.replace("http://127.0.0.1:8000", served.urls.http), tmp_path))
    assert "scans/bad.png: " in said[1]
    assert "no answer" in said[2]
    assert "\n1000\nPrediction(" in said[5]
    assert (tmp_path / "answers.csv").read_text().count("\n") == 5
