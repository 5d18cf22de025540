"""`plurum export`: write a model repository from a fitted run or from checkpoints."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table
from plurum.conventions import IMAGENET_MEAN, IMAGENET_STD
from plurum.export.settings import ExportSettings

if TYPE_CHECKING:
    from plurum.export import ExportImages, ExportResult
    from plurum.spec import ImageSpec

__all__ = ["export"]

# Pinned to a release: a plan loads only with the TensorRT version that built it.
CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-py3"
# The parts of a clone that a wheel is built from.
PACKED = (
    *("pyproject.toml", "README.md", "LICENSE", "src"),
    *("benchmarks", "client", "export", "model_repository", "serving", "training"),
)
_PRINT_VERSION = "from plurum.export.engines.nvinfer import main; main()"
_MEAN, _STD = (",".join(map(str, numbers)) for numbers in (IMAGENET_MEAN, IMAGENET_STD))


@with_options
def export(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: Annotated[
        list[Path],
        typer.Argument(help="A run fitted by `plurum fit`, or your own checkpoints.", metavar="RUN|CHECKPOINT…"),
    ],
    settings: ExportSettings,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the model repository to write [dim]\\[RUN/model_repository][/dim].")
    ] = None,
    build_engines: Annotated[
        bool,
        typer.Option(
            "--build-engines",
            help="Build the TensorRT plans of RUN, a repository exported with --target gpu, on this machine.",
        ),
    ] = False,
    arch: Annotated[
        list[str] | None, typer.Option(help="timm architecture of the checkpoints: one for all or one for each.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names of the checkpoints, such as CE,LAA.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Labelled images, as for `plurum train`, to check and calibrate checkpoints in every precision.",
            metavar="DATA",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Export RUN as `plurum calibrate` calibrated it at this site, to RUN/sites/SITE/model_repository.",
            metavar="SITE",
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Height and width in pixels of the checkpoints' input images.")] = 224,
    mean: Annotated[
        str, typer.Option(help="Per-channel mean used to normalise the checkpoints' inputs, on a scale of 0 to 1.")
    ] = _MEAN,
    std: Annotated[
        str,
        typer.Option(
            help="Per-channel standard deviation used to normalise the checkpoints' inputs, on a scale of 0 to 1."
        ),
    ] = _STD,
    intended_use: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with statements for the model card, such as purpose, users and limits.",
            show_default="RUN/intended_use.json, if it exists",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each graph's comparison with PyTorch as JSON.")
    ] = False,
) -> None:
    """Export the members, check each and their vote against PyTorch, and assemble a Triton model repository.

    Writes nothing if the outputs of a graph or of the vote differ from PyTorch's by more than the tolerance, or if they
    don't keep a promise of `plurum fit` on the review risk, which they certify. The repository's model_card.md states
    the data, members, figures and promises of a run.

    [bold]Examples[/bold]

      plurum export runs/digits

      plurum export runs/digits --precision auto

      plurum export runs/tiles --site north

      plurum export runs/digits --out /srv/models --max-batch-size 32

      plurum export mine.safetensors other.pt --arch resnet18 --classes CE,LAA --out repository

      plurum export mine.safetensors --arch resnet18 --classes CE,LAA --images scans --precision auto --out repository

      plurum export runs/digits --target gpu --precision fp16 --out gpu && plurum export --build-engines gpu
    """
    if build_engines:
        _build(source[0], as_json=as_json)
        return
    repository = out or _repository_of(source[0], site)
    if source[0].is_file() or arch:
        _refuse_site(site)
        checked_on = "validation images" if images else "generated images"
        spec = _image(image_size, mean, std)
        exported = _export_checkpoints(source, arch or [], classes, spec, out, settings, images, intended_use)
    else:
        checked_on = "validation images"
        exported = _export_run(source, repository, settings, images, site, intended_use)
    if as_json:
        parities = [parity.model_dump() for parity in exported.parities]
        published = [artefact.model_dump() for artefact in exported.artefacts]
        report = {
            "repository": str(repository),
            "unchanged": exported.unchanged,
            "parity": parities,
            "artefacts": published,
            "form": {"name": exported.form.name, "reason": exported.form.reason},
            "promise": exported.promise and exported.promise.model_dump(),
            **({} if exported.cascade is None else {"cascade": exported.cascade.model_dump()}),
        }
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print(exported, repository, checked_on)


def _export_checkpoints(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: list[Path],
    archs: list[str],
    classes: str | None,
    image: ImageSpec,
    out: Path | None,
    settings: ExportSettings,
    images: str | None,
    intended_use: Path | None,
) -> ExportResult:
    from plurum.errors import SettingsError
    from plurum.export.checks import check_checkpoints, check_output_folder, find_member_names
    from plurum.export.repository.cards.intended_use import read_intended_use
    from plurum.progress import show_status

    if out is None or not classes:
        raise SettingsError("--arch, --classes, --out: expected all three with checkpoints. Add the missing ones.")
    # Before seconds of imports.
    check_output_folder(out)
    find_member_names(source, archs, settings, has_images=images is not None)
    check_checkpoints(source)
    if intended_use:
        read_intended_use(intended_use)
    with _needs_export():
        from plurum.export import repository_from_checkpoints
    with show_status("exporting") as say:
        names = [name.strip() for name in classes.split(",")]
        labelled = _load_labelled(images, names, image, settings) if images else None
        positional = (source, archs, names, image, out, settings, say)
        return repository_from_checkpoints(*positional, labelled=labelled, intended_use=intended_use)


def _repository_of(run: Path, site: str | None) -> Path:
    from plurum.run import Run

    return (run if site is None else Run(run).site_folder(site)) / "model_repository"


def _refuse_site(site: str | None) -> None:
    from plurum.errors import SettingsError

    if site is not None:
        raise SettingsError(f"--site: expected only with a run, got {site} with checkpoints. Leave the option out.")


def _export_run(
    source: list[Path],
    out: Path,
    settings: ExportSettings,
    images: str | None,
    site: str | None,
    intended_use: Path | None,
) -> ExportResult:
    from plurum.errors import SettingsError
    from plurum.export.checks import check_output_folder
    from plurum.export.repository.cards.intended_use import read_intended_use
    from plurum.progress import show_status
    from plurum.run import Run

    if len(source) > 1:
        raise SettingsError(
            f"RUN: expected one run, got {len(source)}: {', '.join(map(str, source))}. Export one at a time."
        )
    if images:
        raise SettingsError("--images: expected only with checkpoints; a run has its own labelled images")
    # Before seconds of imports.
    run = Run(source[0])
    run.ensemble(site)
    check_output_folder(out)
    if intended_use:
        read_intended_use(intended_use)
    with _needs_export():
        from plurum.export import repository_from_run
    with show_status("exporting") as say:
        return repository_from_run(run, out, settings, say, site=site, intended_use=intended_use)


def _needs_export() -> AbstractContextManager[None]:
    from plurum.errors import needs_extra

    return needs_extra("export", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc")


def _image(size: int, mean: str, std: str) -> ImageSpec:
    from pydantic import ValidationError

    from plurum.errors import SettingsError
    from plurum.spec import ImageSpec

    values = {}
    for option, text in (("mean", mean), ("std", std)):
        try:
            red, green, blue = (float(part) for part in text.split(","))
        except ValueError as error:
            raise SettingsError(f"--{option}: expected three numbers such as {_MEAN}, got {text!r}") from error
        values[option] = (red, green, blue)
    try:
        return ImageSpec(height=size, width=size, mean=values["mean"], std=values["std"])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise SettingsError(f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}") from error


def _load_labelled(data: str, classes: list[str], image: ImageSpec, settings: ExportSettings) -> ExportImages:
    """Return the images of `data` that an export uses, at the members' input size."""
    import numpy as np

    from plurum.errors import SettingsError, needs_extra
    from plurum.export import ExportImages
    from plurum.export.repository.selection import select_evenly

    with needs_extra("training", "sklearn", "pandas"):
        from plurum.training import load_data
    loaded = load_data(data)
    for note in loaded.notes:
        logging.getLogger(__name__).warning("%s: %s", data, note)
    if sorted(loaded.classes) != sorted(classes):
        raise SettingsError(
            f"--classes: expected the classes of --images {data}, {', '.join(loaded.classes)}, "
            f"got {', '.join(classes)}. List them in the order of the checkpoints' outputs."
        )
    parts = [loaded.table.rows("validation"), loaded.table.rows("train")]
    if not all(map(len, parts)):
        raise SettingsError(
            f"--images: expected validation and training images, got {len(parts[0])} and {len(parts[1])} in {data}. "
            f"Add images."
        )
    limits = (settings.parity_images, settings.calibration_images)
    loaded = loaded.select(
        np.concatenate([select_evenly(rows, count) for rows, count in zip(parts, limits, strict=True)])
    )
    labels = tuple(loaded.classes[label] for label in loaded.table.labels)
    return ExportImages(data, loaded.pixels(image), labels, loaded.table)


def _build(repository: Path, *, as_json: bool) -> None:
    from plurum.export.manifest import read_manifest
    from plurum.progress import show_status

    # Before seconds of imports.
    read_manifest(repository)
    with _needs_export():
        from plurum.export import build_engines
    with show_status("building") as say:
        plans = build_engines(repository, say)
    if as_json:
        sys.stdout.write(json.dumps({name: plan.model_dump() for name, plan in plans.items()}) + "\n")
        return
    for name, plan in plans.items():
        sys.stdout.write(f"{name}: TensorRT {plan.tensorrt}, compute capability {plan.compute_capability}\n")
    sys.stdout.write(f"check it with: plurum doctor {repository}\n")


def _print(exported: ExportResult, repository: Path, images: str) -> None:
    from rich.box import HEAVY_HEAD

    from plurum.export.repository.decoders import decoder_command
    from plurum.promises.cascades import cascade_texts
    from plurum.promises.review import promise_text
    from plurum.spec import read_ensemble

    changed = ("Δaccuracy", "ΔNLL", "ΔECE", "review changes")
    title = f"differences from PyTorch, on {exported.parities[0].images} {images}"
    table = new_table(
        "", "precision", "label changes", "largest difference", "mean", *changed, title=title, box=HEAVY_HEAD
    )
    for one in exported.parities:
        changes = (f"{change:+.4f}" for change in (one.accuracy_change, one.nll_change, one.ece_change))
        reviews = "" if one.review_flips is None else str(one.review_flips)
        distances = (f"{one.max_difference:.1e}", f"{one.mean_difference:.1e}")
        table.add_row(one.subject, one.precision, str(one.flips), *distances, *changes, reviews)
    show_table(table)
    for artefact in exported.artefacts:
        typer.echo(f"{artefact.model}: {artefact.precision}, {artefact.reason}")
    typer.echo(f"form: {exported.form.name}, {exported.form.reason}")
    if exported.promise is not None:
        typer.echo(promise_text(exported.promise))
    if exported.cascade is not None:
        names = [artefact.model for artefact in exported.artefacts]
        typer.echo("\n".join(f"cascade: {line}" for line in cascade_texts(exported.cascade, names)))
    if exported.unchanged:
        sys.stdout.write(f"nothing to do: {repository} is up to date with this run and these settings\n")
    sys.stdout.write(f"model repository: {repository}\nmodel card: {repository / 'model_card.md'}\n")
    if any(artefact.backend == "tensorrt" for artefact in exported.artefacts):
        sys.stdout.write(
            "build its TensorRT plans on the GPU and in the container that will serve it, from a clone of "
            f"Plurum:\n{_container_command(repository.resolve())}\n"
        )
    else:
        sys.stdout.write(f"serve it with: plurum serve {repository}\n")
    image = read_ensemble(repository / "ensemble.json").image
    if image.window is not None:
        sys.stdout.write(f"in NVIDIA's container, first run for DICOM images: {decoder_command(image)}\n")


def _container_command(repository: Path) -> str:
    """Return the command that builds the plans of `repository` with the TensorRT version of the container's Triton."""
    import plurum

    root = Path(plurum.__file__).resolve().parents[2]
    # setuptools writes into its source folder, so build from a copy of the packaged parts.
    clone = shlex.quote(str(root)) if (root / "pyproject.toml").is_file() else '"$PWD"'
    steps = (
        "mkdir /tmp/plurum",
        f"cd /clone && cp -r {' '.join(PACKED)} /tmp/plurum",
        'pip install --break-system-packages "/tmp/plurum[export]" polygraphy',
        f'version=$(python3 -c "{_PRINT_VERSION}")',
        'pip install --break-system-packages "tensorrt==$version"',
        "plurum export --build-engines /repository",
    )
    mounts = f"-v {clone}:/clone:ro -v {shlex.quote(str(repository))}:/repository"
    return f"docker run --gpus all --rm {mounts} {CONTAINER} bash -c '{' && '.join(steps)}'"
