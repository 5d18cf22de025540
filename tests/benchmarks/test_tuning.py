"""What `plurum tune` tries, how it chooses and what it writes; real servers are in tests/cli/test_tune.py."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.main import get_command

from plurum.benchmarks import tuning_exports, tuning_search
from plurum.benchmarks.load import Point, mean_of
from plurum.benchmarks.tune_efficiency import ratios, tune_efficiency
from plurum.benchmarks.tuning import TuneSettings, tune
from plurum.benchmarks.tuning_exports import exports_from_run
from plurum.benchmarks.tuning_plots import plot_from_result
from plurum.benchmarks.tuning_repository import Artefacts, read_artefacts, write_variant
from plurum.benchmarks.tuning_result import Final, Objective, Trial, TuneResult, csv_from_result, gain_of
from plurum.benchmarks.tuning_search import Journal, Search
from plurum.benchmarks.tuning_space import batchings, forms, members, precisions, shapes
from plurum.benchmarks.tuning_variant import AS_IS, Backend, Batching, Placement, Variant
from plurum.cli.main import app
from plurum.errors import ParityError, RepositoryError, ServerError, SettingsError
from plurum.export import repository_from_onnx
from plurum.export.configs import fused_config, member_config, text_of
from plurum.export.manifest import read_manifest
from plurum.export.settings import Execution
from plurum.run import Run
from plurum.serving.staging import fill_in, read_config
from plurum.spec import read_ensemble

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tuning.md"
BOTH: tuple[Backend, ...] = ("onnxruntime", "openvino")
MOST = Objective(model="ensemble", clients=(4, 8))
SOON = Objective(model="ensemble", clients=(1, 8), latency_ms=50)


def point(clients: int, images_per_s: float, p99_ms: float) -> Point:
    return Point(clients=clients, requests=10, images_per_s=images_per_s, p50_ms=p99_ms / 2, p99_ms=p99_ms)


def variant(number: int) -> Variant:
    """One of many that differ in their threads."""
    return Variant(form="chain", graphs={"m": Placement(backend="onnxruntime", instances=1, threads=number)})


@pytest.fixture(scope="module")
def fused(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared repository with `ensemble_fused`."""
    ensemble = read_ensemble(repository / "ensemble.json")
    graphs = {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}
    out = tmp_path_factory.mktemp("fused") / "repository"
    repository_from_onnx(ensemble, graphs, out, 8, fused=True)
    return out


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(2, 1), (1, 2)]),
        (6, [(6, 1), (3, 2), (1, 6)]),
        (64, [(16, 4), (8, 8), (4, 16), (2, 32), (1, 64)]),
    ],
)
def test_shapes_go_from_one_image_a_core_to_all_cores_on_one_image(cores: int, expected: list[tuple[int, int]]) -> None:
    assert shapes(cores) == expected


def test_every_form_is_tried_in_every_shape_by_every_backend(repository: Path, fused: Path) -> None:
    found = forms(read_artefacts(AS_IS, fused), 2, BOTH)
    assert len(set(map(str, found))) == len(found) == (3 + 2) * 2
    assert "fused, 2 x 1 onnxruntime, batches of what waits" in map(str, found)
    # A share of the cores for each of two members.
    assert "chain, 1 x 1 openvino, batches of what waits" in map(str, found)
    chains = forms(read_artefacts(AS_IS, repository), 2, ("onnxruntime",))
    assert {one.form for one in chains} == {"chain"}
    assert len(chains) == 3


def test_the_other_stages_stay_around_the_best(fused: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    names = own.members
    best = Variant(
        form="chain", graphs={name: Placement(backend="onnxruntime", instances=2, threads=1) for name in names}
    )
    around = members(best, own, BOTH)
    assert len(around) == 2 * len(names)
    assert all(sum(one.graphs[name] != best.graphs[name] for name in names) == 1 for one in around)
    assert members(best, own, ("onnxruntime",)) == [one for one in around if "openvino" not in str(one)]
    assert members(best.model_copy(update={"form": "fused"}), own, BOTH) == []
    assert Batching(dynamic=False) in [one.batching for one in batchings(best, 8)]
    assert best.batching not in [one.batching for one in batchings(best, 8)]
    assert max(size for one in batchings(best, 4) for size in (*one.batching.preferred, 0)) == 4
    # The same graphs in one need not be tried again.
    again = precisions(best, own, [read_artefacts("bf16", fused)], 2)
    assert [(one.artefacts, one.form) for one in again] == [("bf16", "chain")]


def test_what_was_checked_on_one_backend_alone_stays_there(fused: Path, tmp_path: Path) -> None:

    from plurum.export import int8_from_onnx

    own = read_artefacts(AS_IS, fused)
    first, second = own.members
    assert own.backends[first] == BOTH
    links = tmp_path / "links"
    links.mkdir()
    write_variant(own, forms(own, 2, BOTH)[0], links, trial=False)
    image = own.ensemble.image
    int8_from_onnx(
        fused / first / "1" / "model.onnx",
        np.zeros((1, image.height, image.width, 3), np.uint8),
        links / first / "1" / "model.onnx",
    )
    config = links / second / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"onnxruntime"', '"openvino"')
        + 'parameters { key: "HINT_BF16" value { string_value: "YES" } }'
    )
    other = read_artefacts("int8", links)
    assert other.backends[first] == ("onnxruntime",)
    assert other.backends[second] == ("openvino",)
    assert (other.rounds(first), other.rounds(second)) == (False, True)
    assert other.fingerprint() != own.fingerprint()


@pytest.mark.slow
def test_other_precisions_come_through_exports_own_gate(
    run: Run, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The others take long, and the same way.
    monkeypatch.setattr(tuning_exports, "_PRECISIONS", ("fp32", "bf16"))
    own = read_artefacts(AS_IS, repository)
    found, notes = exports_from_run(run, own, tmp_path, lambda _: None)
    names = {one.name for one in found}
    # FP32 has what the repository has and the fused form; BF16 has the same graphs on another backend.
    assert "fp32" in names
    assert names | {note.split(" ", 1)[0] for note in notes} == {"fp32", "bf16"}
    assert all("fused" in one.forms and one.max_batch_size == own.max_batch_size for one in found)
    again, _ = exports_from_run(run, read_artefacts(AS_IS, tmp_path / "exported-fp32"), tmp_path, lambda _: None)
    assert {one.name for one in again} == names - {"fp32"}
    monkeypatch.setattr(tuning_exports, "_PRECISIONS", ("int8",))

    def refuse(*_: object) -> None:
        raise ParityError("int8 answers otherwise")

    monkeypatch.setattr(tuning_exports, "repository_from_run", refuse)
    assert exports_from_run(run, own, tmp_path, lambda _: None) == (
        [],
        ["int8 was not tried: int8 answers otherwise"],
    )


def test_the_objective_weighs_rate_and_latency() -> None:
    slow, quick = (point(1, 20, 40), point(8, 90, 120)), (point(1, 30, 30), point(8, 60, 45))
    assert MOST.best(slow).images_per_s == 90
    assert SOON.best(slow).images_per_s == 20
    assert SOON.merit(quick) == 60 > SOON.merit(slow) == 20
    late, later = (point(1, 9, 80), point(8, 9, 200)), (point(1, 9, 90), point(8, 90, 200))
    # Nobody keeps it: the nearest.
    assert 0 > SOON.merit(late) > SOON.merit(later)


def test_a_variant_is_judged_by_what_stood_beside_it() -> None:
    # The machine was half as fast for the second.
    first = Trial(
        stage="s", turn=1, seconds=1, variant=variant(1), points=(point(8, 90, 9),), beside=(point(8, 80, 9),)
    )
    second = first.model_copy(update={"points": (point(8, 50, 9),), "beside": (point(8, 40, 9),)})
    assert second.merit(MOST) == 1.25 > first.merit(MOST)
    late = first.model_copy(update={"points": (point(8, 900, 99),)})
    assert late.merit(SOON) == -99
    assert mean_of([point(8, 90, 9), point(8, 50, 19)]).model_dump() == {
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
    journal = Journal(tmp_path / "journal.json", "key")
    return Search({}, MOST, [], 1.0, journal, tmp_path / "served", lambda _: None)


def test_the_best_third_gets_turns_twice_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    many = [variant(number) for number in range(1, 9)]
    rates = {str(one): 10.0 + number for number, one in enumerate(many)}
    assert search(tmp_path, rates, monkeypatch, turns.append).best("stage", many) == many[-1]
    lengths = [turn.rsplit(" ", 1)[1] for turn in turns]
    assert [lengths.count(one) for one in ("1", "2", "4")] == [8, 3, 0]
    assert turns[:8] != [f"{one} 1" for one in many]


def test_the_holder_goes_only_for_what_is_clearly_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, *rivals = (variant(number) for number in range(1, 5))
    rates = {str(one): 100.0 for one in rivals} | {str(holder): 99.0}
    assert search(tmp_path / "a", rates, monkeypatch).best("stage", rivals, holder) == holder
    rates[str(rivals[1])] = 120.0
    assert search(tmp_path / "b", rates, monkeypatch).best("stage", rivals, holder) == rivals[1]
    assert search(tmp_path / "c", rates, monkeypatch).best("stage", [], holder) == holder


def test_of_those_that_answer_as_many_who_answers_soonest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_can_not_be_served_is_tried_twice_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    good, broken, lying = (variant(number) for number in (1, 2, 3))
    found = search(tmp_path, {str(good): 5.0, str(lying): 0.0}, monkeypatch, turns.append)
    assert found.best("stage", [broken, lying, good]) == good
    assert turns.count(f"{broken} 1") == 2
    assert turns.count(f"{lying} 1") == 1
    assert found.best("other", [broken], good) == good
    with pytest.raises(ServerError, match=r"none of 2 ways to serve it works; the first says: did not start"):
        search(tmp_path / "none", {}, monkeypatch).best("stage", [good, broken])


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Of another search it is no use.
    assert Journal(tmp_path / "journal.json", "other").trials == []
    assert len(Journal(tmp_path / "journal.json", "key").trials) == 6


def served_as(folder: Path, model: str) -> Any:
    """A model's config as `plurum serve` completes it, on a machine of 16 cores."""
    config = read_config(folder / model)
    fill_in(config, 16, cpu_only=True)
    return config


def write(artefacts: Artefacts, one: Variant, folder: Path, *, trial: bool = False) -> Path:
    folder.mkdir()
    write_variant(artefacts, one, folder, trial=trial)
    return folder


def test_what_is_chosen_stands_in_the_configs_and_is_served_so(fused: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    first, second = own.members
    chain = Variant(
        form="chain",
        graphs={
            first: Placement(backend="openvino", instances=3, threads=2),
            second: Placement(backend="onnxruntime", instances=1, threads=5),
        },
        batching=Batching(preferred=(4,), delay_us=700),
    )
    tuned = write(own, chain, tmp_path / "chain")
    one, other = served_as(tuned, first), served_as(tuned, second)
    assert (one.backend, [group.count for group in one.instance_group]) == ("openvino", [3])
    assert {name: value.string_value for name, value in one.parameters.items()} == {"INFERENCE_NUM_THREADS": "2"}
    assert (other.backend, [group.count for group in other.instance_group]) == ("onnxruntime", [1])
    assert other.parameters["intra_op_thread_count"].string_value == "5"
    assert list(other.dynamic_batching.preferred_batch_size) == [4]
    assert other.dynamic_batching.max_queue_delay_microseconds == 700
    assert read_config(tuned / "ensemble") == read_config(fused / "ensemble")
    # Nobody asks it through `ensemble`.
    assert [group.count for group in served_as(tuned, "fused").instance_group] == [1]
    alone = write(own, chain.model_copy(update={"batching": Batching(dynamic=False)}), tmp_path / "alone")
    assert not served_as(alone, first).HasField("dynamic_batching")
    assert served_as(alone, "voter").HasField("dynamic_batching")
    # Read again, it can be tuned again.
    assert read_artefacts("again", tuned).backends[first] == ("openvino", "onnxruntime")


def test_the_fused_form_takes_the_public_names_and_gives_them_back(fused: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, fused)
    placement = Placement(backend="onnxruntime", instances=2, threads=1)
    tuned = write(own, Variant(form="fused", graphs={"fused": placement}), tmp_path / "fused")
    before, after = (read_config(folder / "ensemble") for folder in (fused, tuned))
    assert [step.model_name for step in after.ensemble_scheduling.step] == ["preprocess", "fused", "labels"]
    pixels = read_config(tuned / "ensemble_pixels")
    assert [step.model_name for step in pixels.ensemble_scheduling.step] == ["fused", "labels"]
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    assert after.parameters["contract"] == before.parameters["contract"]
    back = Variant(form="chain", graphs=dict.fromkeys(own.members, placement))
    again = write(read_artefacts(AS_IS, tuned), back, tmp_path / "back")
    assert read_config(again / "ensemble") == before
    trial = write(own, back, tmp_path / "trial", trial=True)
    assert "fused" not in {path.name for path in trial.iterdir()}
    assert (trial / "voter" / "1").is_symlink()


def test_the_manifest_says_what_serves_a_graph_now(repository: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, repository)
    (tmp_path / "before").mkdir()
    placement = Placement(backend="openvino", instances=1, threads=1)
    tuned = write(own, Variant(form="chain", graphs=dict.fromkeys(own.members, placement)), tmp_path / "tuned")
    assert {one.backend for one in read_manifest(repository).artefacts} == {"onnxruntime"}
    assert {one.backend for one in read_manifest(tuned).artefacts} == {"openvino"}


@pytest.fixture
def for_a_gpu(fused: Path, tmp_path: Path) -> Path:
    """The fused repository as `--target gpu` writes it, with something in place of plans."""
    folder = shutil.copytree(fused, tmp_path / "gpu")
    ensemble = read_ensemble(folder / "ensemble.json")
    for config in (
        *(member_config(member, 8, Execution("fp16", "tensorrt")) for member in ensemble.members),
        fused_config(ensemble, 8, "tensorrt"),
    ):
        (folder / config.name / "config.pbtxt").write_text(text_of(config))
        (folder / config.name / "1" / "model.plan").write_bytes(str(config.name).encode())
    return folder


def test_on_a_gpu_instances_forms_and_batches_are_tried(for_a_gpu: Path, tmp_path: Path) -> None:
    own = read_artefacts(AS_IS, for_a_gpu)
    found = forms(own, 16, BOTH)
    assert sorted(map(str, found)) == sorted(
        f"{form}, {count} tensorrt, batches of what waits" for form in ("chain", "fused") for count in (1, 2, 4)
    )
    best = next(one for one in found if one.form == "chain" and "2 tensorrt" in str(one))
    first, second = own.members
    assert [str(one) for one in members(best, own, BOTH)] == [
        f"chain, {first} 1 tensorrt, {second} 2 tensorrt, batches of what waits",
        f"chain, {first} 2 tensorrt, {second} 1 tensorrt, batches of what waits",
    ]
    batched = best.model_copy(update={"batching": Batching(preferred=(4,), delay_us=2000)})
    tuned = write(own, batched, tmp_path / "tuned")
    for model in own.members:
        config = read_config(tuned / model)
        assert (config.platform, config.backend, config.optimization.cuda.graphs) == ("tensorrt_plan", "", True)
        (group,) = config.instance_group
        assert (group.kind, group.count) == (group.KIND_GPU, 2)
        assert not config.parameters
        assert list(config.dynamic_batching.preferred_batch_size) == [4]
        assert (tuned / model / "1" / "model.plan").read_bytes() == model.encode()
    # Nobody asks it in a chain.
    assert [group.count for group in read_config(tuned / "fused").instance_group] == [1]
    (tuned / first / "1" / "model.plan").write_bytes(b"another")
    assert read_artefacts(AS_IS, tuned).fingerprint() != read_artefacts(AS_IS, for_a_gpu).fingerprint()


def test_on_a_gpu_there_is_no_other_precision(run: Run, for_a_gpu: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is for a GPU, which has no other precisions to try; leave out --run"):
        tune(for_a_gpu, tmp_path / "tuned", run, TuneSettings())
    assert not (tmp_path / "tuned").exists()


def test_what_can_not_be_tuned_is_one_line(fused: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not there"):
        read_artefacts(AS_IS, tmp_path / "absent")
    own = read_artefacts(AS_IS, fused)
    other = write(own, forms(own, 2, BOTH)[0], tmp_path / "other")
    (other / "fused" / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"fused/1/model\.onnx is missing; export the run again"):
        read_artefacts(AS_IS, other)
    (other / "fused" / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    with pytest.raises(RepositoryError, match=r"model\.plan is missing; build it with plurum export --build-engines"):
        read_artefacts(AS_IS, other)
    (other / "fused" / "config.pbtxt").write_text('backend: "pytorch"')
    with pytest.raises(RepositoryError, match="fused is served by pytorch; tune knows onnxruntime, openvino, tensorrt"):
        read_artefacts(AS_IS, other)
    (other / "ensemble.json").unlink()
    with pytest.raises(RepositoryError, match="is no model repository of ours"):
        read_artefacts(AS_IS, other)


def test_the_ratio_is_the_best_served_over_the_best_in_process_case() -> None:
    figures = {
        "in-process, onnxruntime, one image a core, batches of 1": [20.0, 19.0, 90.0],
        "in-process, onnxruntime, 2 threads on one image, batches of 1": [15.0, 15.0, 15.0],
        "ensemble_pixels, 2 clients": [10.0, 10.0, 10.0],
        "ensemble_pixels, 8 clients": [18.0, 19.0, 1.0],
        "ensemble, 8 clients": [16.0, 16.0, 16.0],
    }
    found = ratios(figures, decode_s=0.02, cores=2)
    assert found["ensemble_pixels"]["ratio"] == round(18 / 20, 4)
    # An image takes 1/20 s to compute and 0.01 s of each core to decode.
    assert found["ensemble"]["ceiling"] == pytest.approx(1 / 0.06)
    assert found["ensemble"]["ratio"] == round(16 * 0.06, 4)


def test_the_pages_commands_can_be_given_and_its_picture_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for picture in re.findall(r"\((images/.*?\.png)\)", text):
        assert (PAGE.parent / picture).is_file()
    alone = typer.Typer()
    alone.command()(tune_efficiency)
    known = {"plurum": get_command(app), "python": get_command(alone)}
    commands = re.findall(r"```sh\n(.*?)\n```", text, flags=re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        program, *words = shlex.split(command)
        # Parsed, not run: `python -m MODULE` before its options, `plurum tune` before its own.
        if program == "plurum":
            context = known[program].make_context(program, words, resilient_parsing=False)
            tune = get_command(app).get_command(context, "tune")  # type: ignore[attr-defined]
            tune.make_context("tune", words[1:])
        else:
            assert words[:2] == ["-m", tune_efficiency.__module__]
            known[program].make_context(program, words[2:])


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
            Trial(stage="s", turn=1, seconds=2, variant=best, points=(point(8, 5, 9),), beside=(point(8, 4, 9),)),
            Trial(stage="s", turn=1, seconds=2, variant=variant(1), error="did not start"),
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
