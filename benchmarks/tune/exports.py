"""The same members in other precisions, as export makes and checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plurum.benchmarks.tune.repository import Artefacts, read_artefacts
from plurum.errors import MissingExtraError, ParityError
from plurum.export import ExportSettings, repository_from_run
from plurum.export.settings import EXECUTIONS
from plurum.run import Run

__all__ = ["exports_from_run"]

# The reference first; `auto` takes, member by member, the fastest that passes.
_PRECISIONS = (*dict.fromkeys(one.precision for one in EXECUTIONS["cpu"]), "auto")


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
        settings = {"precision": precision, "fused": True, "max_batch_size": own.max_batch_size}
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
