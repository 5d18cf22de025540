"""Find the fastest way to serve a repository on this machine, as `plurum tune` does."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.requests import encoded_from_folder, synthetic_images
from plurum.benchmarks.tune.plots import plot_from_result
from plurum.benchmarks.tune.repository import Artefacts, read_artefacts, write_variant
from plurum.benchmarks.tune.result import Final, Gain, Objective, TuneResult, csv_from_result, gain_of, medians_of
from plurum.benchmarks.tune.search import WORTH, Search, TuneJournal, is_preferable
from plurum.benchmarks.tune.space import batchings, forms, members, precisions
from plurum.benchmarks.tune.variant import AS_IS, Backend, Variant
from plurum.errors import MetadataError, MissingExtraError, ParityError, SettingsError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.checks import check_output_folder
from plurum.export.manifest import is_exported_from
from plurum.export.settings import EXECUTIONS
from plurum.files import atomic_folder
from plurum.run import Run
from plurum.serving import usable_cores
from plurum.settings.benchmarks import TuneSettings

__all__ = ["available_backends", "exports_from_run", "images_to_send", "objective_of", "tune"]

_IMAGES = 8
# The reference first; `auto` takes, member by member, the fastest that passes.
_PRECISIONS = (*dict.fromkeys(one.precision for one in EXECUTIONS["cpu"]), "auto")


def objective_of(settings: TuneSettings, cores: int) -> Objective:
    """Return the objective that the settings state, or the usual one for so many cores."""
    usual = (4 * cores,) if settings.latency_ms is None else (1, cores, 2 * cores, 4 * cores)
    clients = tuple(sorted(set(settings.clients or usual)))
    return Objective(model=settings.model, clients=clients, latency_ms=settings.latency_ms)


def images_to_send(own: Artefacts, settings: TuneSettings) -> list[bytes]:
    """Return encoded images to measure with: those of the settings, else synthetic ones.

    Raises:
        SettingsError: The settings' folder has no image.
    """
    images = synthetic_images(own.ensemble.image) if settings.images is None else encoded_from_folder(settings.images)
    return images[:_IMAGES]


def tune(
    repository: Path,
    out: Path,
    run: Run | None,
    settings: TuneSettings,
    progress: Callable[[str], None] = lambda _: None,
) -> TuneResult:
    """Find the fastest way to serve `repository` on this machine, and write a repository served so to `out`.

    Measurements are kept beside `out` until the tuning is complete, so that the same call resumes an interrupted one.

    Args:
        repository: Repository as export writes it; for a GPU, with the plans that `--build-engines` adds.
        out: New or empty folder, or a repository of Plurum; it is written atomically.
        run: Run that `repository` was exported from, to try other precisions; None tries only the existing one.
        settings: Objective and effort.
        progress: Receives one line about each step.

    Raises:
        MetadataError: The run belongs to another ensemble.
        OutputError: `out` holds something else or is not writable.
        RepositoryError: The repository cannot be tuned.
        ServerError: The repository cannot be served.
        SettingsError: `out` is `repository` itself, or a run is given for a repository that targets a GPU.
    """
    # Refused before anything is measured.
    check_output_folder(out)
    if out.exists() and out.resolve() == repository.resolve():
        raise SettingsError(f"--out {out} is the repository itself, which is kept as it is; name another folder")
    own = read_artefacts(AS_IS, repository)
    if run is not None and not is_exported_from(repository, run.ensemble()):
        raise MetadataError(f"{repository} was not exported from {run.path} as it is now: their ensembles differ")
    if run is not None and _on_gpu(own):
        raise SettingsError(f"{repository} is for a GPU, which has no other precisions to try; leave out --run")
    # Before the load of this measurement.
    state = machine()
    objective = objective_of(settings, usable_cores())
    encoded = images_to_send(own, settings)
    work = out.parent / f".{out.name}.tuning"
    others, notes = exports_from_run(run, own, work, progress) if run is not None else ([], [])
    notes += _untried(own)
    exports = {one.name: one for one in (own, *others)}
    key = _key(settings, objective, [one.fingerprint() for one in exports.values()], encoded)
    journal = TuneJournal(work / "journal.json", key)
    with (
        Search(exports, objective, encoded, settings.seconds, journal, work / "served", progress) as search,
        atomic_folder(out) as hidden,
    ):
        best = _search(search, exports, usable_cores(), available_backends())
        write_variant(exports[best.artefacts], best, hidden, trial=False)
        finals = search.final(hidden, settings.turns, 2 * settings.seconds)
        gain = gain_of(finals, objective)
        chosen, reason = _verdict(best, finals, objective, gain)
        if chosen is None:
            shutil.rmtree(hidden)
            shutil.copytree(own.path, hidden, ignore=shutil.ignore_patterns("tuning.*", ".*"))
        result = TuneResult(
            repository=str(repository),
            objective=objective,
            images=f"{len(encoded)} {'synthetic JPEGs' if settings.images is None else f'images of {settings.images}'}",
            machine=state,
            versions=versions(),
            notes=tuple(notes),
            trials=tuple(journal.trials),
            best=best,
            finals=tuple(finals),
            gain=gain,
            chosen=chosen,
            reason=reason,
        )
        (hidden / "tuning.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (hidden / "tuning.csv").write_text(csv_from_result(result), encoding="utf-8")
        (hidden / "tuning.png").write_bytes(plot_from_result(result))
    shutil.rmtree(work, ignore_errors=True)
    return result


def exports_from_run(
    run: Run, own: Artefacts, work: Path, progress: Callable[[str], None]
) -> tuple[list[Artefacts], list[str]]:
    """Return the run's exports that pass export's gate and differ from `own`, and why others are missing.

    Each has the fused form and the same largest batch as `own`.

    Args:
        run: Run that `own` was exported from.
        own: Existing export.
        work: Folder that keeps the exports; a second call reuses them.
        progress: Receives one line about each step.
    """
    found: list[Artefacts] = []
    notes = []
    known = [_graphs(own)]
    for precision in _PRECISIONS:
        # Each precision certifies a promise of its own, unless the given repository has none.
        settings = {
            "precision": precision,
            "fused": True,
            "max_batch_size": own.max_batch_size,
            "without_promise": own.ensemble.promise is None,
        }
        path = work / f"exported-{precision}"
        progress(f"export in {precision}, checked against PyTorch")
        try:
            repository_from_run(run, path, ExportSettings.model_validate(settings))
        except (ParityError, MissingExtraError) as error:
            notes.append(f"{precision} was not tried: {error}")
            continue
        artefacts = read_artefacts(precision, path)
        if (graphs := _graphs(artefacts)) not in known:
            known.append(graphs)
            found.append(artefacts)
    return found, notes


def _graphs(artefacts: Artefacts) -> dict[str, tuple[str, str, bool]]:
    """Return what distinguishes exports, by model: hash of the graph, backend, and whether it computes in BF16."""
    return {
        model: (sha256, artefacts.backends[model][0], artefacts.rounds(model))
        for model, sha256 in artefacts.hashes.items()
    }


def _on_gpu(own: Artefacts) -> bool:
    return any("tensorrt" in known for known in own.backends.values())


def _untried(own: Artefacts) -> list[str]:
    notes = []
    if "fused" not in own.forms:
        notes.append("the fused form was not tried: plurum export --form fused adds it")
    if "openvino" not in available_backends() and not _on_gpu(own):
        notes.append("OpenVINO was not tried: it is not installed; pip install 'plurum[openvino]'")
    return notes


def available_backends() -> tuple[Backend, ...]:
    """Return the backends that this machine can serve with on a CPU."""
    here: tuple[Backend, ...] = ("onnxruntime",)
    return (*here, "openvino") if importlib.util.find_spec("openvino") is not None else here


def _key(settings: TuneSettings, objective: Objective, fingerprints: list[str], images: list[bytes]) -> str:
    """Return the SHA-256 of everything that the search depends on; a search with another one starts again."""
    state = {name: value for name, value in machine().items() if name != "load_1min"}
    parts = [str(settings.seconds), objective.model_dump_json(), str(state), str(versions()), *fingerprints]
    digest = hashlib.sha256("\n".join(parts).encode())
    for image in images:
        digest.update(image)
    return digest.hexdigest()


def _search(search: Search, artefacts: dict[str, Artefacts], cores: int, backends: tuple[Backend, ...]) -> Variant:
    """Return the best variant after all stages."""
    own, *others = artefacts.values()
    best = search.best("form, shape and backend", forms(own, cores, backends))
    best = search.best("precision", precisions(best, own, others, cores), best)
    taken = artefacts[best.artefacts]
    best = search.best("member by member", members(best, taken, backends), best)
    return search.best("batching", batchings(best, taken.max_batch_size), best)


def _verdict(best: Variant, finals: list[Final], objective: Objective, gain: Gain) -> tuple[Variant | None, str]:
    """Return the variant to write, None for the original, and the reason in one line."""
    before, after = (medians_of(finals, side) for side in ("before", "after"))
    was, now = objective.best(before), objective.best(after)
    merits = [objective.merit(points) for points in (before, after)]
    # Pairs of turns decide between rates; if a latency limit is missed, the lower latency wins.
    if min(merits) > 0:
        better = is_preferable(gain.ratio, now.p99_ms, was.p99_ms)
    else:
        better = merits[1] > merits[0] + (WORTH - 1) * abs(merits[0])
    figures = (
        f"{now.images_per_s:.1f} images/s and p99 {now.p99_ms:.0f} ms with {now.clients} in flight against "
        f"{was.images_per_s:.1f} and {was.p99_ms:.0f} ms with {was.clients} before, {gain}, both measured in the same "
        "run"
    )
    missed = "" if merits[1] > 0 else f"; no load keeps p99 <= {objective.latency_ms:g} ms"
    if better:
        return best, f"{best}: {figures}{missed}"
    return None, f"as it was, for the best found, {best}, is not clearly better: {figures}{missed}"
