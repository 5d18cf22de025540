"""Grad-CAM maps of a run's members and of their vote: the regions of an image that support a class.

Selvaraju et al. 2017 (arXiv 1610.02391). A map is as coarse as the layer that it is taken from. It shows where the
evidence is, not why.

Legend: `[rows, columns]` maps are float32, 0 to 1, from the image's top left.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from plurum.errors import ImageError, MetadataError, needs_extra
from plurum.images import UnreadableImageError, open_image, pixels_from_image, to_eight_bit
from plurum.models import model_from_checkpoint, normalise
from plurum.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plurum.spec import ImageSpec

__all__ = ["ENSEMBLE", "Evidence", "EvidenceMap", "grad_cam", "overlay"]

ENSEMBLE = "the ensemble"
Map = npt.NDArray[np.float32]
# Maps with fewer cells a side don't locate anything; the last layers of a small image have a single cell.
_LEAST_CELLS = 4
_SHOWN_SIDE = 384
_NO_MAP = "No map: this architecture has no spatial layers."
_NO_GRADIENTS = "No map: this member is an ONNX graph, which has no gradients."
# From least to most: dark blue, violet, orange, pale yellow; also distinct without colour vision.
_COLOURS = ((20, 18, 70), (122, 28, 109), (237, 105, 37), (252, 255, 164))


@dataclass(frozen=True)
class EvidenceMap:
    """Evidence map of a member or of the ensemble.

    Attributes:
        name: Name of the member, or `ENSEMBLE`.
        places: Size `(rows, columns)` of the map before resizing; None without a map.
        picture: PNG of the image, resized as for the member, with the map over it; empty without a map.
        note: Description for the reader.
    """

    name: str
    places: tuple[int, int] | None
    picture: bytes
    note: str


class Evidence:
    """Evidence maps from the members of a fitted run; safe to use from several threads.

    Args:
        run: A fitted run; its checkpoints are loaded at the first call of `maps`.

    Raises:
        MetadataError: the folder is not a fitted run, or a checkpoint is missing.
        MissingExtraError: torch, timm or safetensors is not installed.
    """

    def __init__(self, run: Run) -> None:
        self.ensemble = run.ensemble()
        self._run = run
        self._models: list[nn.Module] | None = None
        # One image at a time: torch uses all cores for it.
        self._lock = threading.Lock()
        with needs_extra("training", "torch", "timm", "safetensors"):
            for member in self.ensemble.members:
                if not run.checkpoint(member).is_file():
                    raise MetadataError(f"{run.checkpoint(member)} is missing; train the member {member.name!r} again")

    def mismatch(self, classes: Sequence[str], members: Sequence[str], checkpoints: Sequence[str]) -> str:
        """Return in one line why the served ensemble is not this run; empty if it is.

        Args:
            classes: Names of the served classes.
            members: Names of the served members.
            checkpoints: SHA-256 of the served members' weights; empty if the server does not disclose them.
        """
        ours = self.ensemble
        if tuple(members) != tuple(one.name for one in ours.members) or tuple(classes) != ours.classes:
            return f"{self._run.path} is not the run that is served: its classes or members differ"
        if checkpoints and tuple(checkpoints) != tuple(one.sha256 for one in ours.members):
            return f"{self._run.path} is not the run that is served: its members' weights differ"
        return ""

    def maps(self, data: bytes, label: str) -> tuple[EvidenceMap, ...]:
        """Return the evidence maps for the class `label`: the ensemble's, then its members' in their order.

        The ensemble's map is the mean of its members' maps, with the weights of the vote.

        Raises:
            MetadataError: `label` is not a class of the run, or a checkpoint is not the file that `member.json` names.
            ImageError: `data` is not a readable image.
        """
        import torch

        spec = self.ensemble.image
        if label not in self.ensemble.classes:
            raise MetadataError(f"label: expected a class of {self._run.path}, got {label!r}")
        try:
            image = to_eight_bit(open_image(data, window=spec.window))
            seen = pixels_from_image(open_image(data, **spec.decoding), **spec.resizing)
        except UnreadableImageError as error:
            raise ImageError(str(error)) from error
        pixels = torch.from_numpy(seen.copy())[None]
        with self._lock:
            index = self.ensemble.classes.index(label)
            members = zip(self._load(), self.ensemble.members, strict=True)
            maps = [
                None if member.format == "onnx" else grad_cam(model, normalise(pixels, member.image), index)
                for model, member in members
            ]
        shown = _as_member_sees(image, spec)
        vote = _evidence_map(ENSEMBLE, self._vote(maps), shown, label, _NO_MAP)
        members_maps = (
            _evidence_map(member.name, values, shown, label, _NO_GRADIENTS if member.format == "onnx" else _NO_MAP)
            for member, values in zip(self.ensemble.members, maps, strict=True)
        )
        return (vote, *members_maps)

    def _load(self) -> list[nn.Module]:
        if self._models is None:
            members = self.ensemble.members
            self._models = [model_from_checkpoint(member, self._run.checkpoint(member)) for member in members]
        return self._models

    def _vote(self, maps: Sequence[Map | None]) -> Map | None:
        """Return the weighted mean of the available maps, at the size of the finest; None without any."""
        weights = self.ensemble.voting.weights
        available = [
            (values, weight) for values, weight in zip(maps, weights, strict=True) if values is not None and weight
        ]
        if not available:
            return None
        size = max((values.shape for values, _ in available), key=math.prod)
        mean = sum(_resize_map(values, (size[1], size[0])) * np.float32(weight) for values, weight in available)
        return np.asarray(mean / sum(weight for _, weight in available), dtype=np.float32)


def grad_cam(model: nn.Module, pixels: Tensor, index: int) -> Map | None:
    """Return the Grad-CAM map of `model` for the class `index`, or None if its architecture has no spatial layers.

    Uses the deepest layer of timm's `feature_info` with at least 4 x 4 cells, so that small images get a map too. For
    transformers it uses the layer before the last block, after which tokens no longer exchange information.

    Args:
        model: A timm model in evaluation mode.
        pixels: Normalised pixels, float32 `[1, 3, height, width]`.
        index: Index of the class.
    """
    import torch

    outputs: dict[str, Tensor] = {}
    handles = []
    for name in _layer_names(model):
        # The default argument binds the name of this iteration.
        def keep(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = output

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        with torch.enable_grad():
            # With frozen weights, only the input makes the outputs differentiable.
            score = model(pixels.clone().requires_grad_())[0, index]
    finally:
        for handle in handles:
            handle.remove()
    chosen = _deepest_layer(list(outputs.values()), model)
    if chosen is None:
        return None
    (gradient,) = torch.autograd.grad(score, chosen)
    activation, slope = (_as_grid(one, model)[0].detach() for one in (chosen, gradient))
    values = (activation * slope.mean(dim=(1, 2), keepdim=True)).sum(dim=0).clamp(min=0)
    top = float(values.max())
    return np.asarray((values / top if top > 0 else values).numpy(), dtype=np.float32)


def overlay(image: Image.Image, values: Map) -> Image.Image:
    """Return the RGB `image` with a map over it, from dark (no evidence) to bright (most evidence)."""
    fine = _resize_map(values, image.size).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(fine, steps, [one[channel] for one in _COLOURS]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    return Image.fromarray((0.45 * grey + 0.55 * colours).round().astype(np.uint8))


def _layer_names(model: nn.Module) -> list[str]:
    """Return the names of timm's feature layers, the deepest last."""
    known = {name for name, _ in model.named_modules() if name}
    names = [str(one["module"]) for one in getattr(model, "feature_info", None) or ()]
    return [name for name in dict.fromkeys(names) if name in known]


def _deepest_layer(outputs: Sequence[Tensor], model: nn.Module) -> Tensor | None:
    """Return the output of the layer to take the map from; None if no layer is fine enough."""
    flat = [one for one in outputs if one.ndim == 4]
    if flat:
        sides = [min(_as_grid(one, model).shape[-2:]) for one in flat]
        fine = [one for one, side in zip(flat, sides, strict=True) if side >= _LEAST_CELLS]
        return fine[-1] if fine else None
    tokens = [one for one in outputs if one.ndim == 3 and math.prod(_grid_size(one, model)) >= _LEAST_CELLS**2]
    return tokens[-2] if len(tokens) > 1 else None


def _as_grid(output: Tensor, model: nn.Module) -> Tensor:
    """Return a layer's output as `[1, channels, rows, columns]`."""
    if output.ndim == 4:
        last: bool = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if last else output
    rows, columns = _grid_size(output, model)
    # Tokens without a position, such as the class token, come first.
    patches = output[:, output.shape[1] - rows * columns :]
    return patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)


def _grid_size(tokens: Tensor, model: nn.Module) -> tuple[int, int]:
    """Return the rows and columns that tokens `[1, tokens, channels]` represent; zeros if unknown."""
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    extra = int(getattr(model, "num_prefix_tokens", 0) or 0)
    if size and tokens.shape[1] - math.prod(size) in {0, extra}:
        return int(size[0]), int(size[1])
    side = math.isqrt(tokens.shape[1])
    return (side, side) if side * side == tokens.shape[1] else (0, 0)


def _resize_map(values: Map, size: tuple[int, int]) -> Map:
    """Return a map at another size, `(columns, rows)`."""
    resized = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def _as_member_sees(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return what the members see of the image, enlarged for display and in its own proportions."""
    size = image.size if spec.resize == "stretch" else (spec.width, spec.height)
    scale = _SHOWN_SIDE / max(size)
    shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    # Keep the pixels of a small image visible as squares instead of interpolating detail.
    method = Image.Resampling.BILINEAR if max(image.size) > _SHOWN_SIDE else Image.Resampling.NEAREST
    if spec.resize == "pad":
        return ImageOps.pad(image.convert("RGB"), shown, method, color=spec.resizing["fill"])
    return ImageOps.fit(image.convert("RGB"), shown, method)


def _evidence_map(name: str, values: Map | None, shown: Image.Image, label: str, reason: str) -> EvidenceMap:
    """Return a map for display; without values, `reason` says why."""
    if values is None:
        return EvidenceMap(name, None, b"", reason)
    rows, columns = values.shape
    note = f"{rows} × {columns} cells" if values.any() else f"no evidence for {label}"
    file = io.BytesIO()
    overlay(shown, values).save(file, "PNG")
    return EvidenceMap(name, (rows, columns), file.getvalue(), note)
