"""`plurum export`: from a fitted run to a model repository."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plurum.export import Exported, ExportSettings, Labelled
    from plurum.spec import ImageSpec

__all__ = ["export"]

# Named by release, as a plan loads with no other TensorRT than the one that built it.
CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-py3"
# What of a clone a wheel is made of.
PACKED = (
    *("pyproject.toml", "README.md", "LICENSE", "src"),
    *("benchmarks", "client", "export", "model_repository", "serving", "training"),
)
_ASK = "from plurum.export.nvinfer import main; main()"
# Of ImageNet.
_MEAN, _STD = "0.485,0.456,0.406", "0.229,0.224,0.225"


def export(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: Annotated[
        list[Path],
        typer.Argument(
            help="A run that `plurum fit` has filled, or checkpoints of your own.", metavar="RUN|CHECKPOINT…"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the model repository goes [dim]\\[RUN/model_repository][/dim].")
    ] = None,
    target: Annotated[str, typer.Option(help="cpu or gpu: what will serve.")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or int8 for a CPU, fp32 or fp16 for a GPU; auto chooses by member.")
    ] = "fp32",
    fused: Annotated[bool, typer.Option("--fused", help="Add ensemble_fused: members and vote in one graph.")] = False,
    max_batch_size: Annotated[int, typer.Option(help="Largest batch the server takes, 1 to 1024.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a probability between PyTorch and an FP32 graph, 0 to 1.")
    ] = 1e-4,
    build_engines: Annotated[
        bool,
        typer.Option("--build-engines", help="RUN is a repository of --target gpu: build its TensorRT plans here."),
    ] = False,
    arch: Annotated[
        list[str] | None, typer.Option(help="Of checkpoints: timm's architecture; one for all or one for each.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Of checkpoints: the classes' names, as CE,LAA.")] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Of checkpoints: labelled images, as `plurum train` takes them, for any precision.",
            metavar="DATA",
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Of checkpoints: height and width they take.")] = 224,
    mean: Annotated[str, typer.Option(help="Of checkpoints: what their images were normalised by.")] = _MEAN,
    std: Annotated[str, typer.Option(help="Likewise.")] = _STD,
    as_json: Annotated[bool, typer.Option("--json", help="Print how each artefact compared as JSON.")] = False,
) -> None:
    """Export the members, check each and their vote against PyTorch, and assemble a Triton model repository.

    Nothing is written when an artefact, or the vote, answers otherwise on the run's validation images.

    [bold]Examples[/bold]

      plurum export runs/digits

      plurum export runs/digits --precision auto --fused

      plurum export runs/digits --out /srv/models --max-batch-size 32

      plurum export mine.safetensors other.pt --arch resnet18 --classes CE,LAA --out repository

      plurum export mine.safetensors --arch resnet18 --classes CE,LAA --images scans --precision auto --out repository

      plurum export runs/digits --target gpu --precision fp16 --out gpu && plurum export --build-engines gpu
    """
    from plurum.export.settings import ExportSettings
    from plurum.options import settings_from

    if build_engines:
        _build(source[0], as_json=as_json)
        return
    settings = settings_from(
        ExportSettings,
        target=target,
        precision=precision,
        fused=fused,
        max_batch_size=max_batch_size,
        tolerance=tolerance,
    )
    place = out or source[0] / "model_repository"
    if source[0].is_file() or arch:
        checked_on = "validation images" if images else "generated images"
        spec = _image(image_size, mean, std)
        exported = _export_checkpoints(source, arch or [], classes, spec, out, settings, images)
    else:
        checked_on = "validation images"
        exported = _export_run(source, place, settings, images)
    if as_json:
        parities = [parity.model_dump() for parity in exported.parities]
        published = [artefact.model_dump() for artefact in exported.artefacts]
        report = {"repository": str(place), "unchanged": exported.unchanged, "parity": parities, "artefacts": published}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print(exported, place, checked_on)


def _export_checkpoints(
    source: list[Path],
    archs: list[str],
    classes: str | None,
    image: ImageSpec,
    out: Path | None,
    settings: ExportSettings,
    images: str | None,
) -> Exported:
    from rich.console import Console

    from plurum.errors import SettingsError
    from plurum.export.checks import check_checkpoints, checked_names, claim

    if out is None or not classes:
        raise SettingsError("checkpoints need --arch, --classes and --out: what they are, tell apart, and become")
    # Before seconds of imports.
    claim(out)
    checked_names(source, archs, settings, has_images=images is not None)
    check_checkpoints(source)
    with _needs_export():
        from plurum.export import repository_from_checkpoints
    with Console(stderr=True).status("exporting") as status, tempfile.TemporaryDirectory() as folder:
        names = [name.strip() for name in classes.split(",")]
        labelled = _labelled(images, names, image, settings, Path(folder)) if images else None
        return repository_from_checkpoints(source, archs, names, image, out, settings, status.update, labelled=labelled)


def _export_run(source: list[Path], out: Path, settings: ExportSettings, images: str | None) -> Exported:
    from rich.console import Console

    from plurum.errors import SettingsError
    from plurum.export.checks import claim
    from plurum.run import Run

    if len(source) > 1:
        raise SettingsError(f"{len(source)} runs are named, {', '.join(map(str, source))}; export one at a time")
    if images:
        raise SettingsError("--images is for checkpoints; a run has labelled images of its own")
    # Before seconds of imports.
    run = Run(source[0])
    run.ensemble()
    claim(out)
    with _needs_export():
        from plurum.export import repository_from_run
    with Console(stderr=True).status("exporting") as status:
        return repository_from_run(run, out, settings, status.update)


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
            raise SettingsError(f"--{option} is {text!r}; it is three numbers, as {_MEAN}") from error
        values[option] = (red, green, blue)
    try:
        return ImageSpec(height=size, width=size, mean=values["mean"], std=values["std"])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise SettingsError(f"{fault['loc'][0]} is {fault['input']!r}: {fault['msg']}") from error


def _labelled(data: str, classes: list[str], image: ImageSpec, settings: ExportSettings, folder: Path) -> Labelled:
    """Return those of the images that `data` names which an export uses, as members see them, in a file of `folder`."""
    import numpy as np

    from plurum.errors import OutputError, SettingsError, needs_extra
    from plurum.export import Labelled
    from plurum.export.selection import evenly

    with needs_extra("training", "sklearn", "pandas"):
        from plurum.training import load_data
    loaded = load_data(data)
    for note in loaded.notes:
        logging.getLogger(__name__).warning("%s: %s", data, note)
    if sorted(loaded.classes) != sorted(classes):
        raise SettingsError(
            f"--images {data} tells apart {', '.join(loaded.classes)}; --classes are {', '.join(classes)}: they are to "
            f"be the same, in the order of the checkpoints' outputs"
        )
    parts = [loaded.table.rows("validation"), loaded.table.rows("train")]
    if not all(map(len, parts)):
        raise SettingsError(
            f"--images {data} has {len(parts[0])} validation and {len(parts[1])} training images; name more"
        )
    most = (settings.parity_images, settings.calibration_images)
    loaded = loaded.taken(np.concatenate([evenly(rows, count) for rows, count in zip(parts, most, strict=True)]))
    shape = (len(loaded), image.height, image.width, 3)
    try:
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
        # On a full disk, the first write into what is not there yet would end the process without a word.
        with (folder / "pixels.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, (folder / "pixels.npy").stat().st_size)
    except OSError as error:
        raise OutputError(
            f"{len(loaded):,} images can't be written below {tempfile.gettempdir()} (TMPDIR): {error.strerror}"
        ) from error
    loaded.pixels(image, pixels)
    return Labelled(data, pixels, tuple(loaded.classes[label] for label in loaded.table.labels), loaded.table)


def _build(repository: Path, *, as_json: bool) -> None:
    from rich.console import Console

    from plurum.export.manifest import read_manifest

    # Before seconds of imports.
    read_manifest(repository)
    with _needs_export():
        from plurum.export import build_engines
    with Console(stderr=True).status("building") as status:
        plans = build_engines(repository, status.update)
    if as_json:
        sys.stdout.write(json.dumps({name: plan.model_dump() for name, plan in plans.items()}) + "\n")
        return
    for name, plan in plans.items():
        sys.stdout.write(f"{name}: TensorRT {plan.tensorrt}, compute capability {plan.compute_capability}\n")
    sys.stdout.write(f"check it with: plurum doctor {repository}\n")


def _print(exported: Exported, place: Path, images: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"beside PyTorch, on {exported.parities[0].images} {images}")
    for column in (
        "",
        "precision",
        "other labels",
        "largest difference",
        "mean",
        "Δaccuracy",
        "ΔNLL",
        "ΔECE",
        "reviews",
    ):
        table.add_column(column, justify="right" if column else "left")
    for one in exported.parities:
        changes = (f"{change:+.4f}" for change in (one.accuracy_change, one.nll_change, one.ece_change))
        reviews = "" if one.review_flips is None else str(one.review_flips)
        distances = (f"{one.max_difference:.1e}", f"{one.mean_difference:.1e}")
        table.add_row(one.subject, one.precision, str(one.flips), *distances, *changes, reviews)
    console.print(table)
    for artefact in exported.artefacts:
        console.print(f"{artefact.model}: {artefact.precision}, {artefact.reason}", soft_wrap=True, highlight=False)
    if exported.unchanged:
        sys.stdout.write(f"nothing to do: {place} is of exactly this run and these settings already\n")
    sys.stdout.write(f"model repository: {place}\n")
    if any(artefact.backend == "tensorrt" for artefact in exported.artefacts):
        sys.stdout.write(
            "its TensorRT plans are built where it is served, on that GPU and inside that container, from a clone of "
            f"Plurum:\n{_container_command(place.resolve())}\n"
        )
    else:
        sys.stdout.write(f"serve it with: plurum serve {place}\n")


def _container_command(repository: Path) -> str:
    """Return the command that builds the plans of `repository` with the TensorRT that the container's Triton loads."""
    import plurum

    root = Path(plurum.__file__).resolve().parents[2]
    # As setuptools writes beside what it packs, it is given a copy, without what else lies in the clone.
    clone = shlex.quote(str(root)) if (root / "pyproject.toml").is_file() else '"$PWD"'
    steps = (
        "mkdir /tmp/plurum",
        f"cd /clone && cp -r {' '.join(PACKED)} /tmp/plurum",
        'pip install --break-system-packages "/tmp/plurum[export]" polygraphy',
        f'version=$(python3 -c "{_ASK}")',
        'pip install --break-system-packages "tensorrt==$version"',
        "plurum export --build-engines /repository",
    )
    mounts = f"-v {clone}:/clone:ro -v {shlex.quote(str(repository))}:/repository"
    return f"docker run --gpus all --rm {mounts} {CONTAINER} bash -c '{' && '.join(steps)}'"
