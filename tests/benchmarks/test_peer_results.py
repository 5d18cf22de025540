"""The result of a comparison with peers: its table, its picture and its page."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from PIL import Image

from plurum.benchmarks.peers.__main__ import _write
from plurum.benchmarks.peers.plot import plot_from_result
from plurum.benchmarks.peers.result import Accuracy, PeersResult, csv_from_result, markdown_from_result
from tests.docs.pages import DOCS


def made_up() -> PeersResult:
    rates = {"flask": (8.0, 9.0, 30.0), "ours": (20.0, 18.0, 10.0)}
    turns = [
        {"name": name, "clients": clients, "round": turn, "images_per_s": rate, "latencies_ms": (100, 200, 299 + turn)}
        for name, of_name in rates.items()
        for turn, rate in enumerate(of_name, start=1)
        for clients in (8, 1)
    ]
    peers = [
        {"name": name, "title": name.title(), "setup": "", "versions": {}, "ours": name == "ours", "difference": 0}
        for name in rates
    ]
    fields = {"members": ["test_resnet"], "size": 32, "image_bytes": 1234, "spread": 0.1, "seconds": 1, "rounds": 3}
    fields |= {"tolerance": 0.001, "left_out": [{"name": "ray-serve", "reason": "no wheel"}]}
    fields |= {"machine": {"processor": "one", "cores": 2, "load_1min": 0.1}, "versions": {}}
    return PeersResult.model_validate(fields | {"contenders": peers, "turns": turns})


def test_the_table_holds_medians_both_sides_of_each_ratio_and_who_is_missing() -> None:
    table = markdown_from_result(made_up())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][:4] == ["**Ours**", "18.0 (10.0 to 20.0)", "200", "302"]
    assert rows[3][0] == "Flask"
    assert rows[3][-1] == "2.00 (tie)"
    assert "Left out: ray-serve: no wheel." in table
    assert "Accuracy" not in table
    accuracy = Accuracy(
        images=1000, full=0.975, served=0.9742, loss=0.0008, loss_interval=(-0.001, 0.002), same_label=0.99, settled=0.9
    )
    told = markdown_from_result(made_up().model_copy(update={"accuracy": accuracy, "settled": 0.91, "tolerance": 1.0}))
    assert (
        "all members in FP32 97.5%, served 97.4%, 0.08 points lower (-0.10 to 0.20); the same label for 99.0%" in told
    )
    assert "Settled before the last stage: 90.0% of the test images, 91.0% of the images in the turns." in told
    assert "within" in table
    assert "within" not in told
    found = list(csv.DictReader(io.StringIO(csv_from_result(made_up()))))
    assert len(found) == 12
    assert (found[0]["images_per_s"], found[0]["requests"], found[0]["p50_ms"]) == ("8.000", "3", "200.000")


def test_the_spread_over_starts_decides_what_is_a_tie() -> None:
    one = made_up()
    assert one.is_tie("flask", "ours", 8)
    assert "2.00 (tie)" in markdown_from_result(one)
    turns = [turn for turn in one.turns if turn.round < 3]
    again = [turn.model_copy(update={"start": 2, "images_per_s": turn.images_per_s + 1}) for turn in reversed(turns)]
    both = one.model_copy(update={"turns": (*turns, *again), "starts": 2, "rounds": 2})
    assert both.rates("ours", 8) == [19.0, 20.0]
    assert both.rate("flask", 1) == 9.0
    assert not both.is_tie("flask", "ours", 8)
    table = markdown_from_result(both)
    assert "(tie)" not in table
    assert "2 fresh starts of everything, 2 turns of 1 s each" in table


def test_the_picture_has_a_row_for_each() -> None:
    few = made_up()
    many = few.model_copy(update={"contenders": few.contenders * 4})
    heights = [Image.open(io.BytesIO(plot_from_result(one))).height for one in (few, many)]
    assert heights[1] > heights[0]


def test_a_page_gets_its_table_and_picture_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "peers.md"
    shutil.copyfile(DOCS / "peers.md", page)
    before = page.read_text(encoding="utf-8")
    _write(made_up(), tmp_path / "out", page, "cascade-int8")
    after = page.read_text(encoding="utf-8")
    assert "](images/peers/cascade-int8.png)\n\n| | images/s, 8 clients" in after
    assert (tmp_path / "images" / "peers" / "cascade-int8.png").read_bytes() == (
        tmp_path / "out/peers.png"
    ).read_bytes()
    begin, end = "<!-- cascade-int8 -->\n", "<!-- /cascade-int8 -->"
    assert after.partition(begin)[0] == before.partition(begin)[0]
    assert after.partition(end)[2] == before.partition(end)[2]
