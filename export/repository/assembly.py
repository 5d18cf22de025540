"""Assemble a Triton model repository from members.

REPO/ensemble.json                      metadata of the ensemble, with the review limit that the graphs certified and
                                        with the outlier reference that they give
REPO/parity.json                        differences of each artefact, and of the vote, from PyTorch
REPO/model_card.md, model_card.json      data, members, figures, promises and limits of the ensemble
REPO/export.json                        manifest of the export
REPO/questions.json                     predictions for generated images, to check a release with
REPO/{ensemble,ensemble_pixels}         Triton ensembles of the chosen form
REPO/{preprocess,voter}/1               Python models, each with the modules that it imports
REPO/MEMBER/1/model.onnx                graph of each member
REPO/{ensemble_fused,fused,labels}      unless all form a chain: one graph of members and vote, its labels, its ensemble
REPO/fused/1/stage_N.onnx               with a cascade: graphs of its stages, which all ensembles run
REPO/{fused,stage_N}/1                  with a cascade for GPUs: a Python model, and the stages' models that it runs
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import CertificationError, MetadataError, RepositoryError
from plurum.export.checks import check_output_folder
from plurum.export.graphs.member import PixelModel
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.manifest import PublishedGraph, is_current, read_manifest, write_manifest
from plurum.export.repository.cards.card import card_from_repository
from plurum.export.repository.cards.card_files import update_card, write_card
from plurum.export.repository.cards.facts import CardFacts, facts_from_run
from plurum.export.repository.cascade_certification import certify_served
from plurum.export.repository.certification import ServedGraphs, certification_images, with_provisional_promise
from plurum.export.repository.forms import ServedForm, choose_form, without_unserved_cascade
from plurum.export.repository.fusion import (
    artefacts_inside,
    fuse_choices,
    fused_backend,
    fused_rule,
    published_from_file,
    stage_parities,
)
from plurum.export.repository.model_folders import add_chain_models, add_fused_models
from plurum.export.repository.outlier_reference import reference_images, with_detector, with_served_reference
from plurum.export.repository.parity import Parity, check_parity, verdict_from_members, vote_parity
from plurum.export.repository.refusals import record_refusal
from plurum.export.repository.selection import (
    MemberChoice,
    ParitySample,
    choose_artefact,
    original_verdict,
    select_evenly,
)
from plurum.export.scratch import scratch_folder
from plurum.export.settings import BUDGETS, Backend, ExportSettings, Form
from plurum.files import atomic_folder
from plurum.models import model_from_checkpoint
from plurum.regular_files import read_regular
from plurum.repository.probes import PROBES_FILE, RecordedProbes, probe_images
from plurum.run import Run, Split, Table, UnlabelledImages
from plurum.spec import CascadeRule, Ensemble, Member, OutlierRule, ReviewPromise, read_ensemble, write_metadata
from plurum.voting import OutlierTest, softmax

__all__ = [
    "ExportResult",
    "record_predictions",
    "repository_from_models",
    "repository_from_onnx",
    "repository_from_run",
    "sample_from_table",
    "select_passing_choices",
]

# Difference of a probability between processors.
_PROCESSORS_DIFFER = 1e-3


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        unchanged: True if the repository was already up to date, so that nothing was done.
        parities: Parity of every artefact and of the vote.
        artefacts: Graphs in the repository.
        form: Form in which the repository serves, and why.
        promise: Promise on the review risk that the repository states; None without one.
        cascade: Cascade that the repository serves; None without one.
    """

    unchanged: bool
    parities: tuple[Parity, ...]
    artefacts: tuple[PublishedGraph, ...]
    form: ServedForm
    promise: ReviewPromise | None = None
    cascade: CascadeRule | None = None


def repository_from_run(
    run: Run,
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda _: None,
    *,
    site: str | None = None,
    intended_use: Path | None = None,
) -> ExportResult:
    """Export every member of a fitted run, check it, and write the repository to `out` atomically.

    A promise of the fit is certified with the predictions of the exported graphs, see `certify_ensemble`. A refused
    certification is recorded in the run's report.

    Args:
        run: Run with `ensemble.json`, checkpoints and data.
        out: New or empty folder, or a Plurum repository, which stays in place until the new one replaces it.
        settings: Target, precision, batch size and budgets.
        progress: Called with one line per step.
        site: Site whose calibration to export; None exports the run's own.
        intended_use: File with statements for the model card; by default the run's `intended_use.json`, if it exists.

    Raises:
        CertificationError: the graphs don't keep the promise of the fit; `out` is unchanged.
        MetadataError: the run is not fitted, not calibrated at the site, or one of its files is invalid.
        MissingExtraError: the requested precision needs a package that is not installed.
        OutputError: `out` holds other files or can't be written.
        ParityError: an artefact or the vote differs from PyTorch by more than its budget; `out` is unchanged.
        SettingsError: the statements for the model card are invalid.
    """
    ensemble = run.ensemble(site)
    facts = facts_from_run(run, intended_use, site)

    def load_sample() -> ParitySample:
        table, pixels = run.table(), run.pixels()
        sample = sample_from_table(table, pixels, settings, str(run.path), run.unlabelled())
        return replace(sample, reference=reference_images(run, ensemble, table))

    def load_model(member: Member) -> PixelModel:
        return with_detector(run, ensemble, member, model_from_checkpoint(member, run.checkpoint(member)))

    try:
        return repository_from_models(ensemble, load_model, load_sample, out, settings, progress, facts)
    except CertificationError as error:
        record_refusal(run, error)
        raise


def repository_from_models(
    ensemble: Ensemble,
    load_model: Callable[[Member], PixelModel],
    load_sample: Callable[[], ParitySample],
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str], None],
    facts: CardFacts,
) -> ExportResult:
    """Export every member of `ensemble`, check it, and write the repository to `out` atomically.

    Args:
        ensemble: Metadata of the ensemble.
        load_model: Function that loads a member; called once for each, one after the other.
        load_sample: Function that loads the images to check on; not called if the repository is up to date.
        out: New or empty folder, or a Plurum repository.
        settings: Target, precision, batch size and budgets.
        progress: Called with one line per step.
        facts: Facts for the model card.

    Raises:
        CertificationError: the graphs don't keep the promise of the fit; `out` is unchanged.
        MissingExtraError: the requested precision needs a package that is not installed.
        OutputError: `out` holds other files or can't be written.
        ParityError: an artefact or the vote differs from PyTorch by more than its budget; `out` is unchanged.
        SettingsError: the ensemble has a cascade, and the form is a chain or a member has the name of a stage's model.
    """
    check_output_folder(out)
    stated = ensemble
    ensemble = without_unserved_cascade(ensemble, settings)
    if is_current(out, stated, settings):
        former = _read_previous_export(out, settings)
        update_card(out, card_from_repository(out, facts, former.artefacts, former.parities))
        return former
    sample = load_sample()
    with atomic_folder(out) as hidden, scratch_folder(hidden) as folder:
        choices = [
            choose_artefact(member.name, load_model(member), sample, settings, folder, progress)
            for member in ensemble.members
        ]
        choices, vote = select_passing_choices(ensemble, choices, sample, settings)
        artefacts = {choice.member: choice.candidate.artefact for choice in choices}
        form = choose_form(ensemble, settings, {name: one.precision for name, one in artefacts.items()})
        tested, rule_of_fused = _with_references(ensemble, choices, sample, form, progress)
        backend = fused_backend(choices, settings, sample.pixels) if form.has_fused_graph else None
        graphs = ServedGraphs(list(artefacts.values()), backend, folder, rule_of_fused)
        served = certify_served(tested, graphs, sample.certification, settings, progress)
        if served.outliers or served.rule != ensemble.rule:
            # Compare reviews at the limit that is served, and p-values with those of the fit.
            vote = _parity_of_vote(served, choices, sample, settings, ensemble.rule.outliers)
            check_parity(vote)
        published = tuple(_copy_graph(choice, hidden) for choice in choices)
        add_chain_models(served, hidden, out, settings.max_batch_size, artefacts, form.name)
        parities = (*(choice.candidate.parity for choice in choices), vote)
        if backend is not None:
            progress("fused graph: members and vote")
            originals = original_verdict(served.rule, choices, ensemble.rule.outliers)
            checked = (originals, sample)
            fused, parity = fuse_choices(served, choices, checked, settings, hidden, backend, rule_of_fused)
            stages = stage_parities(ensemble, served, choices, sample, settings, hidden, backend)
            published, parities = (*published, *fused), (*parities, parity, *stages)
        report = {"split": "validation", "artefacts": [parity.model_dump() for parity in parities]}
        write_metadata(hidden / PROBES_FILE, record_predictions(served, list(artefacts.values()), settings))
        (hidden / "parity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_card(hidden, card_from_repository(hidden, facts, published, parities))
        write_manifest(hidden, stated, settings, published)
    return ExportResult(False, parities, published, form, served.promise, served.cascade)


def repository_from_onnx(
    ensemble: Ensemble,
    graphs: Mapping[str, Path],
    out: Path,
    max_batch_size: int = 16,
    *,
    form: Form = "fused",
    fused: bool = False,
    backend: Backend = "onnxruntime",
) -> None:
    """Write a repository of existing graphs to `out` atomically, without checking the graphs.

    A promise in the metadata is stated as provisional, because these graphs did not certify it.

    Args:
        ensemble: Metadata of the ensemble.
        graphs: ONNX files by member name, as `plurum.export.graphs.member` writes them, with NOVELTY where the
            outlier test has a detector. The reference stays as the metadata state it.
        out: New or empty folder, or a Plurum repository.
        max_batch_size: Largest batch of every model.
        form: Form of `ensemble` and `ensemble_pixels`; a cascade is always fused.
        fused: If True, a chain has `ensemble_fused`, too.
        backend: Backend of the fused graph; ONNX Runtime serves the members.

    Raises:
        OutputError: `out` holds other files or can't be written.
    """
    check_output_folder(out)
    ensemble = with_provisional_promise(ensemble)
    if ensemble.cascade is not None:
        form = "fused"
    with atomic_folder(out) as hidden:
        for member in ensemble.members:
            (hidden / member.name / "1").mkdir(parents=True)
            shutil.copyfile(graphs[member.name], hidden / member.name / "1" / "model.onnx")
        add_chain_models(ensemble, hidden, out, max_batch_size, {}, form)
        if fused or form == "fused":
            files_of_members = [graphs[member.name] for member in ensemble.members]
            add_fused_models(ensemble, files_of_members, hidden, max_batch_size, backend)


def _with_references(
    ensemble: Ensemble,
    choices: list[MemberChoice],
    sample: ParitySample,
    form: ServedForm,
    progress: Callable[[str], None],
) -> tuple[Ensemble, OutlierRule | None]:
    """Return the ensemble with the outlier references of its graphs, and the fused graph's rule if it has its own."""
    if ensemble.cascade is not None:
        # Only the stages of a cascade serve its members.
        return with_served_reference(ensemble, artefacts_inside(choices), sample.reference, progress), None
    artefacts = [choice.candidate.artefact for choice in choices]
    tested = with_served_reference(ensemble, artefacts, sample.reference, progress)
    return tested, fused_rule(tested, choices, sample, progress) if form.has_fused_graph else None


def _read_previous_export(out: Path, settings: ExportSettings) -> ExportResult:
    path = out / "parity.json"
    try:
        report = json.loads(read_regular(path))
        parities = tuple(Parity.model_validate(parity) for parity in report["artefacts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RepositoryError(f"{path} can't be read; remove {out} and export the run again: {error!r:.200}") from error
    served = read_ensemble(out / "ensemble.json")
    artefacts = read_manifest(out).artefacts
    form = choose_form(served, settings, {one.model: one.precision for one in artefacts})
    return ExportResult(True, parities, artefacts, form, served.promise, served.cascade)


def sample_from_table(
    table: Table,
    pixels: npt.NDArray[np.uint8],
    settings: ExportSettings,
    source: str,
    unlabelled: UnlabelledImages | None = None,
) -> ParitySample:
    """Return images to check on, to calibrate on and, where patients were set aside, to certify on; deterministic.

    Args:
        table: Labels and splits of the images.
        pixels: Images, uint8 `[images, height, width, 3]`.
        settings: Numbers of images to take.
        source: Name of the images' source, for messages.
        unlabelled: Images of further patients, to certify a cascade on; None without any.

    Raises:
        MetadataError: there is no validation or no training image.
    """
    parts = {}
    limits: tuple[tuple[Split, int], ...] = (
        ("validation", settings.parity_images),
        ("train", settings.calibration_images),
    )
    for split, most in limits:
        rows = table.rows(split)
        if not len(rows):
            raise MetadataError(f"{source} has no {split} images, which an export needs; train on data with some")
        parts[split] = select_evenly(rows, most)
    held_out = parts["validation"]
    certification = certification_images(table, pixels, unlabelled)
    return ParitySample(pixels[held_out], table.labels[held_out], pixels[parts["train"]], certification)


def select_passing_choices(
    ensemble: Ensemble, choices: list[MemberChoice], sample: ParitySample, settings: ExportSettings
) -> tuple[list[MemberChoice], Parity]:
    """Return choices with which the vote passes, and the parity of the vote.

    With `precision="auto"`, the member that differs most returns to FP32, until the vote passes.

    Raises:
        ParityError: the vote does not pass.
    """
    while True:
        # The outlier test has no reference of these graphs yet.
        parity = _parity_of_vote(ensemble.with_outliers(None), choices, sample, settings)
        if parity.passed or settings.precision != "auto" or parity.precision == "fp32":
            check_parity(parity)
            return choices, parity
        worst = max(
            (choice for choice in choices if choice.taken.precision != "fp32"),
            key=lambda choice: choice.candidate.parity.mean_difference,
        )
        reason = f"{worst.taken} passed alone, but with it the vote does not: {'; '.join(parity.faults)}"
        choices = [one.back_to_fp32(reason) if one is worst else one for one in choices]


def _parity_of_vote(
    ensemble: Ensemble,
    choices: list[MemberChoice],
    sample: ParitySample,
    settings: ExportSettings,
    fitted: OutlierTest | None = None,
) -> Parity:
    """Return the parity of the vote over the chosen artefacts; `fitted` is the test with PyTorch's reference."""
    rule = ensemble.rule
    novelty = [choice.candidate.novelty for choice in choices] if rule.outliers else ()
    original = original_verdict(rule, choices, fitted)
    exported = verdict_from_members([choice.candidate.probabilities for choice in choices], rule, novelty)
    precision = max((choice.taken.precision for choice in choices), key=[*BUDGETS].index)
    return vote_parity("vote", precision, original, exported, sample.labels, settings.budget(precision), rule)


def record_predictions(ensemble: Ensemble, artefacts: Sequence[Artefact], settings: ExportSettings) -> RecordedProbes:
    """Return the vote's predictions for generated images.

    Args:
        ensemble: Metadata of the ensemble.
        artefacts: Artefacts of the members, in the order of `ensemble`.
        settings: Budgets, which give the tolerance.
    """
    pixels = probe_images(ensemble.image.height, ensemble.image.width)
    verdict = verdict_from_members(
        (softmax(outputs_from_artefact(one, pixels).logits) for one in artefacts), ensemble.rule
    )
    coarsest = max((one.precision for one in artefacts), key=[*BUDGETS].index)
    return RecordedProbes(
        probabilities=tuple(map(tuple, verdict.probabilities.tolist())),
        tolerance=max(_PROCESSORS_DIFFER, settings.budget(coarsest).max_difference),
    )


def _copy_graph(choice: MemberChoice, repository: Path) -> PublishedGraph:
    artefact = choice.candidate.artefact
    path = repository / choice.member / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copyfile(artefact.path, path)
    published = published_from_file(repository, choice.member, artefact.precision, artefact.backend, choice.reason)
    measured = {str(execution): one.latency_ms for execution, one in choice.candidates.items()}
    times = {name: round(time, 3) for name, time in measured.items() if time is not None}
    return published.model_copy(update={"latency_ms": times})
