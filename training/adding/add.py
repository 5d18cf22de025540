"""Add a member from elsewhere to a run: timm weights stay weights, all other models become an ONNX graph."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.errors import DataError, MetadataError, OutputError, SettingsError, needs_extra
from plurum.files import atomic_folder, sha256_of
from plurum.models import model_from_checkpoint, normalise
from plurum.run import DataMetadata, Run
from plurum.settings.members import AddSettings
from plurum.spec import RESERVED_NAMES, ImageSpec, Member, Scores, name_from_file, write_metadata
from plurum.training.learning.plan import check_takes_members
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.voting import softmax

if TYPE_CHECKING:
    from torch import nn

    from plurum.training.adding.graphs import MemberGraph

__all__ = ["AddedMember", "add_member", "check_member_name"]

# Images on which a graph is compared with its original; more than one, so that the batch is tested, too.
_COMPARED = 8


@dataclass(frozen=True)
class AddedMember:
    """Result of adding a member.

    Attributes:
        member: Metadata of the member, with its scores on the run's validation images.
        difference: Largest difference of a probability of the graph from the original model's, 0 to 1; None for timm
            weights, which are not converted.
        notes: What was done to the weights' names, and warnings.
    """

    member: Member
    difference: float | None
    notes: tuple[str, ...]


def add_member(run: Run, sources: Sequence[str], settings: AddSettings) -> AddedMember:
    """Add a model from elsewhere to a run as a member, after comparing and scoring it on validation images.

    The model's code is run only if the user names it, as an architecture; a file never brings code. Nothing is written
    unless all checks pass.

    Args:
        run: Run with images.
        sources: A file of weights or an ONNX file; before weights may stand their architecture.
        settings: What the file does not state.

    Raises:
        DataError: the run has no validation images.
        MetadataError: the file is unreadable, unsafe, or does not fit.
        MissingExtraError: a package is not installed.
        OutputError: the run has a member of this name, or can't be written.
        ParityError: the graph differs from the original model.
        SettingsError: an option is missing or wrong, or the run has folds.
    """
    with needs_extra("training", "torch", "timm", "safetensors"):
        pass
    run.check()
    check_takes_members(run, "RUN")
    data = run.data()
    file, arch = _file_and_arch(sources, settings)
    name = settings.name or name_from_file(file.name)
    check_member_name(run, name)
    order = _order_of(settings, data)
    adding = _Adding(run, data, settings, file, name, order)
    is_onnx = file.suffix.lower() == ".onnx"
    _check_options(settings, arch, is_onnx)
    if is_onnx:
        return adding.add_onnx()
    if arch is None:
        raise SettingsError(f"--arch: expected the architecture of {file}, got none. Add --arch, such as resnet18.")
    from plurum.training.adding.factories import is_timm

    return adding.add_timm(arch) if is_timm(arch) else adding.add_module(arch)


@dataclass(frozen=True)
class _Adding:
    """One call of `add_member`."""

    run: Run
    data: DataMetadata
    settings: AddSettings
    file: Path
    name: str
    order: tuple[int, ...]

    def add_onnx(self) -> AddedMember:
        """Add an ONNX file."""
        with needs_extra("export", "onnx"):
            from plurum.onnx_graphs.files import read_onnx
            from plurum.training.adding.graphs import graph_from_onnx, image_size_of
        if self.settings.outputs is None:
            raise SettingsError(f"--outputs: expected logits or probabilities for {self.file}, got none")
        size = image_size_of(read_onnx(self.file), self.settings)
        image = self._image(*size)
        graph = graph_from_onnx(self.file, self.settings, size, self.order, self._sample(image))
        return self._write_graph("ONNX file", image, graph, [])

    def add_module(self, arch: str) -> AddedMember:
        """Add weights of a module that is not timm's."""
        from plurum.training.adding.factories import LogitsModel, module_from_arch
        from plurum.training.adding.weights import load_weights

        with needs_extra("export", "onnx", "onnxscript"):
            from plurum.training.adding.graphs import graph_from_module
        image = self._image(*self._image_size())
        module = module_from_arch(arch, len(self.order))
        notes = load_weights(module, self.file, arch)
        kind = self.settings.outputs or "logits"
        # Standard output is for results, and the module's code may print.
        with contextlib.redirect_stdout(sys.stderr):
            graph = graph_from_module(LogitsModel(module).eval(), arch, kind, self.order, self._sample(image))
        return self._write_graph(arch, image, graph, notes)

    def add_timm(self, arch: str) -> AddedMember:
        """Add weights of a timm architecture."""
        from safetensors.torch import save_file

        from plurum.models import create_model
        from plurum.training.adding.weights import load_weights

        image = self._image(*self._image_size())
        model = create_model(arch, len(self.order))
        notes = load_weights(model, self.file, arch)
        _reorder(model, self.order)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with atomic_folder(self.run.member_folder(self.name)) as folder:
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(weights, folder / "checkpoint.safetensors")
            member = self._member(arch, "timm", folder / "checkpoint.safetensors", image, parameters)
            write_metadata(folder / "member.json", member)
        return AddedMember(member, None, (*notes, *self._warnings(member)))

    def _write_graph(self, arch: str, image: ImageSpec, graph: MemberGraph, notes: list[str]) -> AddedMember:
        with atomic_folder(self.run.member_folder(self.name)) as folder:
            (folder / "model.onnx").write_bytes(graph.graph)
            member = self._member(arch, "onnx", folder / "model.onnx", image, graph.parameters)
            write_metadata(folder / "member.json", member)
        return AddedMember(member, graph.difference, (*notes, *self._warnings(member)))

    def _member(self, arch: str, kind: str, checkpoint: Path, image: ImageSpec, parameters: int) -> Member:
        """Return the member's metadata, with its scores on validation images."""
        member = Member.model_validate(
            {
                "name": self.name,
                "format": kind,
                "arch": arch,
                "checkpoint": checkpoint.name,
                "sha256": sha256_of(checkpoint),
                "classes": self.data.classes,
                "image": image,
                "parameters": max(1, parameters),
            }
        )
        return member.model_copy(update={"validation": self._score(member, checkpoint)})

    def _score(self, member: Member, checkpoint: Path) -> Scores:
        table = self.run.table()
        rows = table.rows("validation")
        logits = predict_logits(model_from_checkpoint(member, checkpoint), self.run.pixels(), rows, member.image)
        if not np.isfinite(logits).all():
            raise MetadataError(f"{self.file} returns NaN for validation images. Check its weights, --mean and --std.")
        return compute_scores(softmax(logits), table.labels[rows])

    def _warnings(self, member: Member) -> list[str]:
        table = self.run.table()
        labels = table.labels[table.rows("validation")]
        most = float(np.bincount(labels).max() / len(labels))
        if member.validation is None or member.validation.accuracy > most:
            return []
        warning = (
            f"its accuracy on validation images, {member.validation.accuracy:.1%}, is no better than always the most "
            f"frequent class, {most:.1%}: check --classes, --mean and --std"
        )
        return [warning]

    def _image_size(self) -> tuple[int, int]:
        if self.settings.image_size is None:
            raise SettingsError(f"--image-size: expected the input size of {self.file} in pixels, got none")
        return self.settings.image_size, self.settings.image_size

    def _image(self, height: int, width: int) -> ImageSpec:
        """Return the model's image spec; images are decoded as the run's are."""
        decoded = self.data.image.model_dump()
        changed = {"height": height, "width": width, "mean": self.settings.mean, "std": self.settings.std}
        try:
            return ImageSpec.model_validate(decoded | changed)
        except ValidationError as error:
            raise SettingsError(
                f"--image-size: expected 8 to 4096 pixels a side, got {height} × {width}. Use another model."
            ) from error

    def _sample(self, image: ImageSpec) -> npt.NDArray[np.float32]:
        """Return normalised validation images to compare graphs on."""
        import torch

        rows = self.run.table().rows("validation")
        if len(rows) < 2:
            raise DataError(f"{self.run.path}: expected at least 2 validation images, got {len(rows)}. Add images.")
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_COMPARED, len(rows))).round().astype(np.int64))]
        pixels = torch.from_numpy(np.array(self.run.pixels()[chosen]))
        return np.ascontiguousarray(normalise(pixels, image).numpy(), dtype=np.float32)


def _file_and_arch(sources: Sequence[str], settings: AddSettings) -> tuple[Path, str | None]:
    """Return the file of the model, and its architecture, which may stand before it."""
    if len(sources) > 2 or (len(sources) == 2 and settings.arch):
        raise SettingsError(
            f"FILE: expected one file, after its architecture if --arch is not given, got {len(sources)}"
        )
    file = Path(sources[-1])
    if not file.is_file():
        held = [one.name for one in sorted(file.glob("*")) if one.suffix in {".safetensors", ".onnx"}]
        way_out = f". Name a file in it, such as {file / held[0]}." if held else ""
        raise SettingsError(
            f"FILE: expected a file of weights or an ONNX file, got {file}, which is not a file{way_out}"
        )
    arch = settings.arch or (sources[0] if len(sources) == 2 else None)
    return file, None if arch is None else arch.removeprefix("timm:")


def _check_options(settings: AddSettings, arch: str | None, is_onnx: bool) -> None:
    """Check that no option is given that the kind of model does not use."""
    if is_onnx and arch:
        raise SettingsError(f"--arch: expected no architecture for an ONNX file, got {arch}. Leave it out.")
    given = {"--input": settings.input, "--output": settings.output, "--layout": settings.layout}
    if not is_onnx and (unused := [option for option, value in given.items() if value]):
        raise SettingsError(f"{unused[0]}: expected an ONNX file, got a file of weights. Leave the option out.")


def check_member_name(run: Run, name: str, option: str = "--name") -> None:
    """Check that a new member of the run may have this name, which `option` states.

    Raises:
        OutputError: the run has a member of this name.
        SettingsError: members can't have this name.
    """
    if name in RESERVED_NAMES or name != name_from_file(f"{name}.x"):
        raise SettingsError(f"{option}: expected letters, digits, . _ and -, and no reserved name, got {name!r}")
    if run.member_folder(name).exists():
        raise OutputError(f"{option}: {run.path} has a member {name!r} already. Choose another name.")


def _order_of(settings: AddSettings, data: DataMetadata) -> tuple[int, ...]:
    """Return the index of each class of the run among the model's outputs."""
    if sorted(settings.classes) != sorted(data.classes):
        raise SettingsError(
            f"--classes: expected the classes of the run, {', '.join(data.classes)}, in the order of the model's "
            f"outputs, got {', '.join(settings.classes)}"
        )
    return tuple(settings.classes.index(name) for name in data.classes)


def _reorder(model: nn.Module, order: tuple[int, ...]) -> None:
    """Reorder the rows of timm's classifying layers, so that the outputs have the order of the run's classes."""
    import torch

    if order == tuple(range(len(order))):
        return
    named: str | tuple[str, ...] = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    layers = [model.get_submodule(name) for name in ((named,) if isinstance(named, str) else named)]
    tensors = [tensor for layer in layers for tensor in layer.parameters()]
    if not tensors or any(tensor.shape[0] != len(order) for tensor in tensors):
        raise SettingsError(
            "--classes: expected the order of the run's classes, as timm does not name the model's head"
        )
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(tensor[list(order)].clone())
