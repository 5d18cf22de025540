"""A short soak: the same requests, far fewer of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plurum.benchmarks.claims.garbage import GARBAGE, garbage
from plurum.benchmarks.claims.soak import SoakTally, soak
from plurum.benchmarks.tools.requests import coloured_jpegs


def test_growth_is_that_of_all_processes_since_the_warm_up() -> None:
    memory = {
        10: {"gateway": 60, "triton": 40},
        50: {"gateway": 900, "triton": 900},
        100: {"gateway": 70, "triton": 41},
    }
    assert SoakTally(memory_bytes=memory).growth == pytest.approx(0.11)


def test_garbage_is_of_many_kinds_and_is_made_anew() -> None:
    (image,) = coloured_jpegs(32, 32, 1)
    assert len(GARBAGE) >= 15
    chance = random.Random(0)
    sent = [garbage(kind, image, chance).sent for kind in GARBAGE for _ in range(2)]
    assert image not in sent
    assert len(set(sent)) > 1.5 * len(GARBAGE)


@pytest.mark.triton
def test_good_answers_stay_right_and_garbage_is_refused(report_of: Callable[..., Any], repository: Path) -> None:
    report = report_of(soak, repository=repository, requests=600, garbage_share=0.2)
    assert report["wrong"] == {}
    assert report["garbage_missed"] == {}
    assert report["faults"] == {}
    # Every kind had its turn.
    assert set(report["garbage"]) > set(GARBAGE)
    assert report["right"] + sum(report["garbage"].values()) == 600
    # Bodies of half a MiB, of which several are there at once.
    assert report["gateway_peak_bytes"] < 256 << 20
    # Pools fill up at first; a leak of a whole request would show even so.
    assert report["growth"] < 0.25
