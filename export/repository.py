"""From members to a model repository that Triton serves.

REPO/ensemble.json                      the contract (marks the folder as ours)
REPO/parity.json                        how each graph compared with PyTorch
REPO/{ensemble,ensemble_pixels}         chains
REPO/{preprocess,voter}/1               Python models, each with what it needs beside it
REPO/MEMBER/1/model.onnx
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from plurum.errors import OutputError
from plurum.export.configs import ensemble_config, member_config, preprocess_config, text_of, voter_config
from plurum.export.graphs import PixelModel, onnx_from_model
from plurum.export.parity import Parity, check_parity, parity_of
from plurum.export.settings import ExportSettings
from plurum.files import whole_folder
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.spec import Ensemble, write_contract

__all__ = ["claim", "repository_from_onnx", "repository_from_run"]

# Which files of ours each Python model finds beside it.
_PREPROCESS = (("model_repository", "preprocess", "model.py"), ("images.py",))
_VOTER = (("model_repository", "voter", "model.py"), ("model_repository", "voter", "metrics.py"), ("voting.py",))


def repository_from_run(
    run: Run, out: Path, settings: ExportSettings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Parity]:
    """Export every member of a fitted run, check it, and put the repository at `out`, whole or not at all.

    Args:
        run: With `ensemble.json`, checkpoints and data.
        out: A new or empty folder, or a repository of ours, which stays until the new one takes its place.
        settings: Batch size and tolerance.
        progress: Told what is being done, a line each.

    Returns:
        How each member's graph compared with PyTorch.

    Raises:
        ContractError: the run is not fitted, or something in it is broken.
        OutputError: `out` holds something else or can't be written to.
        ParityError: a graph answers otherwise than its original; `out` stays as it was.
    """
    ensemble = run.ensemble()
    claim(out)
    table = run.table()
    pixels = run.pixels()[table.rows("validation")[: settings.parity_images]]
    parities: dict[str, Parity] = {}
    with whole_folder(out) as hidden:
        for member in ensemble.members:
            progress(f"{member.name}: to ONNX")
            model = PixelModel(model_from_checkpoint(member, run.checkpoint(member)), member.image)
            graph = hidden / member.name / "1" / "model.onnx"
            graph.parent.mkdir(parents=True)
            onnx_from_model(model, graph)
            progress(f"{member.name}: compared with PyTorch on {len(pixels)} validation images")
            parities[member.name] = parity_of(model, graph, pixels, settings.tolerance)
            check_parity(member.name, parities[member.name])
        _assemble(ensemble, hidden, settings.max_batch_size)
        report = {name: parity.model_dump() for name, parity in parities.items()}
        (hidden / "parity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return parities


def repository_from_onnx(ensemble: Ensemble, graphs: Mapping[str, Path], out: Path, max_batch_size: int = 16) -> None:
    """Put a repository of graphs that exist already at `out`, whole or not at all; they are not checked here.

    Args:
        ensemble: The contract.
        graphs: By member name; PIXELS → LOGITS as `plurum.export.graphs` writes them.
        out: A new or empty folder, or a repository of ours.
        max_batch_size: Largest batch.

    Raises:
        OutputError: `out` holds something else or can't be written to.
    """
    claim(out)
    with whole_folder(out) as hidden:
        for member in ensemble.members:
            (hidden / member.name / "1").mkdir(parents=True)
            shutil.copyfile(graphs[member.name], hidden / member.name / "1" / "model.onnx")
        _assemble(ensemble, hidden, max_batch_size)


def claim(out: Path) -> None:
    """Make sure that `out` is free or a repository of ours.

    Raises:
        OutputError: it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a new folder for the repository")
    if out.is_dir() and any(out.iterdir()) and not (out / "voter" / "config.pbtxt").is_file():
        raise OutputError(f"{out} holds something else than a model repository; name a new or an empty folder")


def _assemble(ensemble: Ensemble, folder: Path, max_batch_size: int) -> None:
    """Add everything but the graphs."""
    for member in ensemble.members:
        _write_config(folder, member_config(member, max_batch_size))
    for config, sources in (
        (preprocess_config(ensemble, max_batch_size), _PREPROCESS),
        (voter_config(ensemble, max_batch_size), _VOTER),
    ):
        version = _write_config(folder, config)
        write_contract(version / "ensemble.json", ensemble)
        for source in sources:
            with as_file(files("plurum").joinpath(*source)) as path:
                shutil.copyfile(path, version / source[-1])
    for name, encoded in (("ensemble", True), ("ensemble_pixels", False)):
        _write_config(folder, ensemble_config(name, ensemble, max_batch_size, encoded=encoded))
    write_contract(folder / "ensemble.json", ensemble)


def _write_config(folder: Path, config: Any) -> Path:
    """Write a model's config and return its version folder, which Triton wants even where it stays empty."""
    version = folder / str(config.name) / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    return version
