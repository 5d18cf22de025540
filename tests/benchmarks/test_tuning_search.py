"""Search and evidence of `plurum tune`, with invented rates."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.tools.load import LoadFigures, average_of
from plurum.benchmarks.tune import search as tuning_search
from plurum.benchmarks.tune.plots import plot_from_result
from plurum.benchmarks.tune.result import Final, Objective, TuneResult, TuneTrial, csv_from_result, gain_of
from plurum.benchmarks.tune.search import Search, TuneJournal
from plurum.benchmarks.tune.variant import Placement, Variant
from plurum.errors import ServerError

MOST = Objective(model="ensemble", clients=(4, 8))
SOON = Objective(model="ensemble", clients=(1, 8), latency_ms=50)


def point(clients: int, images_per_s: float, p99_ms: float) -> LoadFigures:
    return LoadFigures(clients=clients, requests=10, images_per_s=images_per_s, p50_ms=p99_ms / 2, p99_ms=p99_ms)


def variant(number: int) -> Variant:
    """One of many that differ in their threads."""
    return Variant(form="chain", graphs={"m": Placement(backend="onnxruntime", instances=1, threads=number)})


def test_the_objective_weighs_rate_and_latency() -> None:
    slow, quick = (point(1, 20, 40), point(8, 90, 120)), (point(1, 30, 30), point(8, 60, 45))
    assert MOST.best(slow).images_per_s == 90
    assert SOON.best(slow).images_per_s == 20
    assert SOON.merit(quick) == 60 > SOON.merit(slow) == 20
    late, later = (point(1, 9, 80), point(8, 9, 200)), (point(1, 9, 90), point(8, 90, 200))
    # Nobody keeps it: the nearest.
    assert 0 > SOON.merit(late) > SOON.merit(later)


def test_a_variant_is_compared_with_the_turns_beside_it() -> None:
    # The machine was half as fast for the second.
    first = TuneTrial(
        stage="s", turn=1, seconds=1, variant=variant(1), points=(point(8, 90, 9),), beside=(point(8, 80, 9),)
    )
    second = first.model_copy(update={"points": (point(8, 50, 9),), "beside": (point(8, 40, 9),)})
    assert second.merit(MOST) == 1.25 > first.merit(MOST)
    late = first.model_copy(update={"points": (point(8, 900, 99),)})
    assert late.merit(SOON) == -99
    assert average_of([point(8, 90, 9), point(8, 50, 19)]).model_dump() == {
        "clients": 8,
        "requests": 20,
        "images_per_s": 70,
        "p50_ms": 7,
        "p99_ms": 14,
    }


def search(
    tmp_path: Path,
    rates: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    log: Callable[[str], None] = lambda _: None,
    p99_ms: dict[str, float] | None = None,
) -> Search:
    """A search in which variants answer at these rates and so late, by name, and others can't be served."""

    def measured(_: Search, one: Variant, seconds: float) -> dict[str, Any]:
        log(f"{one} {seconds:g}")
        if str(one) not in rates:
            raise ServerError("did not start")
        rate = rates[str(one)]
        late = (p99_ms or {}).get(str(one), 10)
        both = {"points": (point(8, rate, late),), "beside": (point(8, 10, 10),)}
        return both if rate else {"error": "answers otherwise"}

    monkeypatch.setattr(tuning_search.Search, "_measured", measured)
    journal = TuneJournal(tmp_path / "journal.json", "key")
    return Search({}, MOST, [], 1.0, journal, tmp_path / "served", lambda _: None)


def test_the_best_third_gets_turns_twice_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    many = [variant(number) for number in range(1, 9)]
    rates = {str(one): 10.0 + number for number, one in enumerate(many)}
    assert search(tmp_path, rates, monkeypatch, turns.append).best("stage", many) == many[-1]
    lengths = [turn.rsplit(" ", 1)[1] for turn in turns]
    assert [lengths.count(one) for one in ("1", "2", "4")] == [8, 3, 0]
    assert turns[:8] != [f"{one} 1" for one in many]


def test_the_best_variant_is_replaced_only_by_a_clearly_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, *rivals = (variant(number) for number in range(1, 5))
    rates = {str(one): 100.0 for one in rivals} | {str(holder): 99.0}
    assert search(tmp_path / "a", rates, monkeypatch).best("stage", rivals, holder) == holder
    rates[str(rivals[1])] = 120.0
    assert search(tmp_path / "b", rates, monkeypatch).best("stage", rivals, holder) == rivals[1]
    assert search(tmp_path / "c", rates, monkeypatch).best("stage", [], holder) == holder


def test_among_equal_rates_the_lowest_latency_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, *rivals = (variant(number) for number in range(1, 5))
    rates = dict(zip(map(str, rivals), (100.0, 99.0, 97.0), strict=True)) | {str(holder): 100.0}
    late = dict(zip(map(str, rivals), (300.0, 200.0, 100.0), strict=True)) | {str(holder): 300.0}
    assert search(tmp_path / "a", rates, monkeypatch, p99_ms=late).best("stage", rivals) == rivals[1]
    assert search(tmp_path / "b", rates, monkeypatch, p99_ms=late).best("stage", rivals, holder) == rivals[1]
    late[str(holder)] = 210.0
    assert search(tmp_path / "c", rates, monkeypatch, p99_ms=late).best("stage", rivals, holder) == holder
    # Who is better by more than the noise is not put behind who is only sooner.
    rates[str(rivals[0])], rates[str(rivals[1])], late[str(rivals[0])] = 103.0, 101.5, 400.0
    assert search(tmp_path / "d", rates, monkeypatch, p99_ms=late).best("stage", rivals, holder) == rivals[0]


def test_variants_that_fail_twice_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    good, broken, lying = (variant(number) for number in (1, 2, 3))
    found = search(tmp_path, {str(good): 5.0, str(lying): 0.0}, monkeypatch, turns.append)
    assert found.best("stage", [broken, lying, good]) == good
    assert turns.count(f"{broken} 1") == 2
    assert turns.count(f"{lying} 1") == 1
    assert found.best("other", [broken], good) == good
    with pytest.raises(ServerError, match=r"none of 2 variants works; the first: did not start"):
        search(tmp_path / "none", {}, monkeypatch).best("stage", [good, broken])


def test_an_interrupted_search_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [variant(number) for number in range(1, 5)]
    rates = {str(one): float(number) for number, one in enumerate(many, start=1)}

    def interrupt_at(most: int) -> list[str]:
        turns: list[str] = []

        def log(turn: str) -> None:
            turns.append(turn)
            if len(turns) > most:
                raise KeyboardInterrupt

        if most < 6:
            with pytest.raises(KeyboardInterrupt):
                search(tmp_path, rates, monkeypatch, log).best("stage", many)
        else:
            assert search(tmp_path, rates, monkeypatch, log).best("stage", many) == many[-1]
        return turns

    taken = interrupt_at(3)[:-1] + interrupt_at(99)
    assert len(taken) == len(set(taken)) == 4 + 2
    # Another search starts again.
    assert TuneJournal(tmp_path / "journal.json", "other").trials == []
    assert len(TuneJournal(tmp_path / "journal.json", "key").trials) == 6


def test_evidence_has_a_row_for_each_turn_and_load() -> None:
    best = variant(2)
    finals = [
        Final(side=side, turn=turn, points=(point(1, rate + turn, 10), point(8, rate * 2, 30)))
        for side, rate in (("before", 10.0), ("after", 20.0))
        for turn in (1, 2, 3)
    ]
    result = TuneResult(
        repository="REPO",
        objective=MOST,
        images="8 synthetic JPEGs",
        machine={"cores": 2},
        versions={},
        notes=(),
        trials=(
            TuneTrial(stage="s", turn=1, seconds=2, variant=best, points=(point(8, 5, 9),), beside=(point(8, 4, 9),)),
            TuneTrial(stage="s", turn=1, seconds=2, variant=variant(1), error="did not start"),
        ),
        best=best,
        finals=tuple(finals),
        gain=gain_of(finals, MOST),
        chosen=best,
        reason="why",
    )
    rows = csv_from_result(result).splitlines()
    assert rows[1] == 's,1,"chain, 1 x 2 onnxruntime, batches of what waits",8,10,5,4.5,9,'
    assert rows[2] == "s,1,beside it: the repository as it was,8,10,4,4.5,9,"
    assert rows[3].endswith(",,,,,,did not start")
    assert len(rows) == 1 + 3 + 6 * 2
    assert [one.images_per_s for one in result.medians("after")] == [22, 40]
    # At 8 in flight, the only load of both that counts.
    assert result.gain.ratio == pytest.approx(2)
    assert str(gain_of(finals[:1] + finals[3:4], MOST)) == "2.00 times as many"
    noisy = [one.model_copy(update={"points": (point(8, 10 ** (1 + one.turn % 2), 10),)}) for one in finals[:3]]
    assert str(gain_of([*noisy, *finals[3:]], MOST)).endswith(", which may be noise)")
    assert TuneResult.model_validate_json(result.model_dump_json()) == result
    picture = np.asarray(Image.open(io.BytesIO(plot_from_result(result))).convert("L"))
    assert picture.std() > 5
