"""From members to a model repository that Triton serves.

REPO/ensemble.json                      the contract (marks the folder as ours)
REPO/parity.json                        how each artefact, and the vote, compared with PyTorch
REPO/export.json                        what each artefact is and was made of
REPO/questions.json                     what the artefacts answer to made-up images
REPO/{ensemble,ensemble_pixels}         chains
REPO/{preprocess,voter}/1               Python models, each with what it needs beside it
REPO/MEMBER/1/model.onnx
REPO/{ensemble_fused,fused,labels}      with --fused: one graph of members and vote, and its labels
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from plurum.errors import ContractError, RepositoryError
from plurum.export.checks import claim
from plurum.export.configs import (
    FUSED,
    LABELS,
    ensemble_config,
    fused_config,
    fused_ensemble_config,
    labels_config,
    member_config,
    preprocess_config,
    text_of,
    voter_config,
)
from plurum.export.fused import fused_from_onnx, verdict_from_fused
from plurum.export.graphs import PixelModel
from plurum.export.manifest import Published, is_current, read_manifest, write_manifest
from plurum.export.parity import Parity, check_parity, verdict_of, vote_parity
from plurum.export.runtimes import Artefact, logits_from_artefact
from plurum.export.scratch import scratch_folder
from plurum.export.selection import Choice, Sample, choose, evenly
from plurum.export.settings import Backend, Execution, ExportSettings, Precision
from plurum.files import sha256_of, whole_folder
from plurum.models import model_from_checkpoint
from plurum.questions import QUESTIONS, Recorded, made_up_images
from plurum.regular_files import read_regular
from plurum.run import Run, Split
from plurum.spec import Ensemble, write_contract
from plurum.voting import softmax

__all__ = ["Exported", "recorded_answers", "repository_from_onnx", "repository_from_run", "voted_choices"]

# Which files of ours each Python model finds beside it.
_PREPROCESS = (
    ("model_repository", "preprocess", "model.py"),
    ("images.py",),
    ("decoder.py",),
    ("image_limits.py",),
    ("jpeg_structure.py",),
    ("png_structure.py",),
    ("tiff_structure.py",),
)
_VOTER = (("model_repository", "voter", "model.py"), ("model_repository", "voter", "metrics.py"), ("voting.py",))
_LABELS = (
    ("model_repository", "labels", "model.py"),
    ("model_repository", "labels", "labels.py"),
    ("model_repository", "voter", "metrics.py"),
    ("voting.py",),
)
# From the finest to the coarsest; the vote is held to the budget of the coarsest among its members.
_COARSENESS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
# Between one processor and another, of a probability.
_PROCESSORS_DIFFER = 1e-3


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        unchanged: Whether the repository was already made of exactly this, so that nothing was done.
        parities: Of every artefact and of the vote.
        artefacts: What was published.
    """

    unchanged: bool
    parities: tuple[Parity, ...]
    artefacts: tuple[Published, ...]


def repository_from_run(
    run: Run, out: Path, settings: ExportSettings, progress: Callable[[str], None] = lambda _: None
) -> Exported:
    """Export every member of a fitted run, check it, and put the repository at `out`, whole or not at all.

    Args:
        run: With `ensemble.json`, checkpoints and data.
        out: A new or empty folder, or a repository of ours, which stays until the new one takes its place.
        settings: Target, precision, batch size and budgets.
        progress: Told what is being done, a line each.

    Raises:
        ContractError: the run is not fitted, or something in it is broken.
        MissingExtraError: the precision asked for needs a package that is not installed.
        OutputError: `out` holds something else or can't be written to.
        ParityError: an artefact or the vote answers otherwise than PyTorch; `out` stays as it was.
    """
    ensemble = run.ensemble()
    claim(out)
    if is_current(out, ensemble, settings):
        return _exported_before(out)
    sample = _sample(run, settings)
    with whole_folder(out) as hidden, scratch_folder(hidden) as folder:
        choices = []
        for member in ensemble.members:
            model = PixelModel(model_from_checkpoint(member, run.checkpoint(member)), member.image)
            choices.append(choose(member.name, model, sample, settings, folder, progress))
        choices, vote = voted_choices(ensemble, choices, sample, settings)
        published = tuple(_publish(choice, hidden) for choice in choices)
        artefacts = {choice.member: choice.candidate.artefact for choice in choices}
        _assemble(ensemble, hidden, settings.max_batch_size, artefacts)
        parities = (*(choice.candidate.parity for choice in choices), vote)
        if settings.fused:
            progress("ensemble_fused: members and vote in one graph")
            fused, parity = _fuse(ensemble, choices, sample, settings, hidden)
            published, parities = (*published, fused), (*parities, parity)
        report = {"split": "validation", "artefacts": [parity.model_dump() for parity in parities]}
        write_contract(hidden / QUESTIONS, recorded_answers(ensemble, list(artefacts.values()), settings))
        (hidden / "parity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_manifest(hidden, ensemble, settings, published)
    return Exported(unchanged=False, parities=parities, artefacts=published)


def repository_from_onnx(
    ensemble: Ensemble, graphs: Mapping[str, Path], out: Path, max_batch_size: int = 16, *, fused: bool = False
) -> None:
    """Put a repository of graphs that exist already at `out`, whole or not at all; they are not checked here.

    Args:
        ensemble: The contract.
        graphs: By member name; PIXELS → LOGITS as `plurum.export.graphs` writes them.
        out: A new or empty folder, or a repository of ours.
        max_batch_size: Largest batch.
        fused: Whether `ensemble_fused` is added.

    Raises:
        OutputError: `out` holds something else or can't be written to.
    """
    claim(out)
    with whole_folder(out) as hidden:
        for member in ensemble.members:
            (hidden / member.name / "1").mkdir(parents=True)
            shutil.copyfile(graphs[member.name], hidden / member.name / "1" / "model.onnx")
        _assemble(ensemble, hidden, max_batch_size, {})
        if fused:
            files_of_members = [graphs[member.name] for member in ensemble.members]
            _write_fused(ensemble, files_of_members, hidden, max_batch_size, "onnxruntime")


def _exported_before(out: Path) -> Exported:
    path = out / "parity.json"
    try:
        report = json.loads(read_regular(path))
        parities = tuple(Parity.model_validate(parity) for parity in report["artefacts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RepositoryError(f"{path} can't be read; remove {out} and export the run again: {error!r:.200}") from error
    return Exported(unchanged=True, parities=parities, artefacts=read_manifest(out).artefacts)


def _sample(run: Run, settings: ExportSettings) -> Sample:
    """Return the images to check on, and others to calibrate on, each a share of its split that is the same always.

    Raises:
        ContractError: the run has no validation or no training image.
    """
    table, pixels = run.table(), run.pixels()
    parts = {}
    wanted: tuple[tuple[Split, int], ...] = (
        ("validation", settings.parity_images),
        ("train", settings.calibration_images),
    )
    for split, most in wanted:
        rows = table.rows(split)
        if not len(rows):
            raise ContractError(f"{run.path} has no {split} images, which an export needs; train on data that has some")
        parts[split] = evenly(rows, most)
    held_out = parts["validation"]
    return Sample(pixels[held_out], table.labels[held_out], pixels[parts["train"]])


def voted_choices(
    ensemble: Ensemble, choices: list[Choice], sample: Sample, settings: ExportSettings
) -> tuple[list[Choice], Parity]:
    """Return the choices with which the vote passes, and how it does.

    Where precisions are chosen here, the member that differs most goes back to FP32 until the vote passes.

    Raises:
        ParityError: it doesn't.
    """
    original = verdict_of([choice.original for choice in choices], ensemble.rule)
    while True:
        precision = max((choice.taken.precision for choice in choices), key=_COARSENESS.index)
        exported = verdict_of([choice.candidate.probabilities for choice in choices], ensemble.rule)
        parity = vote_parity(
            "vote", precision, original, exported, sample.labels, settings.budget(precision), ensemble.rule
        )
        if parity.passed or settings.precision != "auto" or precision == "fp32":
            check_parity(parity)
            return choices, parity
        worst = max(
            (choice for choice in choices if choice.taken.precision != "fp32"),
            key=lambda choice: choice.candidate.parity.mean_difference,
        )
        reason = f"{worst.taken} passed alone, but with it the vote does not: {'; '.join(parity.faults)}"
        choices = [one.back_to_fp32(reason) if one is worst else one for one in choices]


def recorded_answers(ensemble: Ensemble, artefacts: Sequence[Artefact], settings: ExportSettings) -> Recorded:
    """Return what the members' artefacts, in the contract's order, and the vote over them answer to made-up images."""
    pixels = made_up_images(ensemble.image.height, ensemble.image.width)
    verdict = verdict_of((softmax(logits_from_artefact(one, pixels)) for one in artefacts), ensemble.rule)
    coarsest = max((one.precision for one in artefacts), key=_COARSENESS.index)
    return Recorded(
        probabilities=tuple(map(tuple, verdict.probabilities.tolist())),
        tolerance=max(_PROCESSORS_DIFFER, settings.budget(coarsest).max_difference),
    )


def _publish(choice: Choice, repository: Path) -> Published:
    artefact = choice.candidate.artefact
    path = repository / choice.member / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copyfile(artefact.path, path)
    published = _published(repository, choice.member, artefact.precision, artefact.backend, choice.reason)
    measured = {str(execution): one.latency_ms for execution, one in choice.candidates.items()}
    times = {name: round(time, 3) for name, time in measured.items() if time is not None}
    return published.model_copy(update={"latency_ms": times})


def _published(repository: Path, model: str, precision: Precision, backend: Backend, reason: str) -> Published:
    path = repository / model / "1" / "model.onnx"
    return Published(
        model=model,
        file=str(path.relative_to(repository)),
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        precision=precision,
        backend=backend,
        reason=reason,
        latency_ms={},
    )


def _fuse(
    ensemble: Ensemble, choices: list[Choice], sample: Sample, settings: ExportSettings, repository: Path
) -> tuple[Published, Parity]:
    """Add `ensemble_fused` to the repository.

    Raises:
        ParityError: it answers otherwise than PyTorch.
    """
    taken = [choice.taken for choice in choices]
    # OpenVINO rounds to BF16 as it compiles, all or nothing, and the vote is FP32: such a member is its FP32 graph.
    inside: list[Precision] = ["fp32" if one.precision == "bf16" else one.precision for one in taken]
    backend: Backend = "tensorrt" if settings.target == "gpu" else "onnxruntime"
    if Execution("int8", "openvino") in taken:
        # ONNX Runtime would compute what is rounded for OpenVINO in FP32.
        backend = "openvino"
    precision = max(inside, key=_COARSENESS.index)
    graphs = [choice.candidate.artefact.path for choice in choices]
    path = _write_fused(ensemble, graphs, repository, settings.max_batch_size, backend)
    names = (choice.member for choice in choices)
    _state_precisions(repository / LABELS / "1", dict(zip(names, inside, strict=True)))
    original = verdict_of([choice.original for choice in choices], ensemble.rule)
    exported = verdict_from_fused(path, sample.pixels, backend)
    budget = settings.budget(precision)
    parity = vote_parity("ensemble_fused", precision, original, exported, sample.labels, budget, ensemble.rule)
    check_parity(parity)
    reason = f"of {', '.join(f'{choice.member} in {one}' for choice, one in zip(choices, inside, strict=True))}"
    return _published(repository, FUSED, precision, backend, reason), parity


def _write_fused(
    ensemble: Ensemble, graphs: Sequence[Path], repository: Path, max_batch_size: int, backend: Backend
) -> Path:
    """Add the fused graph, its labels and their chain; return the graph's path."""
    path = _write_config(repository, fused_config(ensemble, max_batch_size, backend)) / "model.onnx"
    fused_from_onnx(graphs, ensemble.rule, len(ensemble.classes), path)
    _add_python(_write_config(repository, labels_config(ensemble, max_batch_size)), ensemble, _LABELS)
    _write_config(repository, fused_ensemble_config(ensemble, max_batch_size))
    return path


def _assemble(ensemble: Ensemble, folder: Path, max_batch_size: int, artefacts: Mapping[str, Artefact]) -> None:
    """Add everything but the graphs; a member without an artefact is served by ONNX Runtime."""
    for member in ensemble.members:
        artefact = artefacts.get(member.name)
        made = (artefact.execution,) if artefact else ()
        _write_config(folder, member_config(member, max_batch_size, *made))
    for config, sources in (
        (preprocess_config(ensemble, max_batch_size), _PREPROCESS),
        (voter_config(ensemble, max_batch_size), _VOTER),
    ):
        _add_python(_write_config(folder, config), ensemble, sources)
    _state_precisions(folder / "voter" / "1", {name: artefact.precision for name, artefact in artefacts.items()})
    for name, encoded in (("ensemble", True), ("ensemble_pixels", False)):
        _write_config(folder, ensemble_config(name, ensemble, max_batch_size, encoded=encoded))
    write_contract(folder / "ensemble.json", ensemble)


def _add_python(version: Path, ensemble: Ensemble, sources: tuple[tuple[str, ...], ...]) -> None:
    """Give a Python model its code and the contract."""
    write_contract(version / "ensemble.json", ensemble)
    for source in sources:
        with as_file(files("plurum").joinpath(*source)) as path:
            shutil.copyfile(path, version / source[-1])


def _state_precisions(version: Path, precisions: Mapping[str, Precision]) -> None:
    """Have a Python model know what each member computes in, for its metrics."""
    (version / "precisions.json").write_text(json.dumps(precisions) + "\n", encoding="utf-8")


def _write_config(folder: Path, config: Any) -> Path:
    """Write a model's config and return its version folder, which Triton wants even where it stays empty."""
    version = folder / str(config.name) / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    return version
