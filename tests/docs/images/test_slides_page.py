"""Run the Python and the commands of docs/slides.md against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import plurum.client
from plurum.client.slides.heat_maps import SLIDE_FILES
from plurum.serving import Server
from tests.client.slides.slide_writer import PlantedTile, write_slide_file
from tests.docs.pages import Terminal, blocks, commands, run_python

EXAMPLES = blocks("slides.md", "python")


def test_what_is_public_of_slides_is_on_the_page() -> None:
    names = [name for name in plurum.client.__all__ if "slide" in name.lower() or name == "heat_map"]
    assert names == ["SlidePrediction", "SlideSettings", "heat_map", "predict_slide", "write_slide"]
    assert [name for name in names[1:] if not any(f"{name}(" in example for example in EXAMPLES)] == []


@pytest.mark.triton
def test_the_examples_and_the_commands_run(served: Server, terminal: Terminal, tmp_path: Path) -> None:
    write_slide_file(tmp_path / "slide.tif", 2048, 3, PlantedTile())
    assert len(EXAMPLES) == 2
    for example in EXAMPLES:
        assert run_python(example.replace("127.0.0.1:8001", served.urls.grpc), tmp_path)
    assert sorted(path.name for path in (tmp_path / "out" / "slide").iterdir()) == sorted(SLIDE_FILES)
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 500
    (command,) = commands("slides.md")
    # An image of this size is a slide only with `--slide`.
    terminal.run(f"{command} --slide --url {served.urls.grpc}", {"512": "64"})
