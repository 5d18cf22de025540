"""Where in an image a run's members found what speaks for a class: Grad-CAM of each, and of their vote.

Selvaraju et al. 2017 (arXiv 1610.02391). A map is as coarse as the layer that it is taken from, and shows where a
member looked, not why.

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

from plurum.errors import ContractError, ImageError, needs_extra
from plurum.images import UnreadableImageError, eight_bit, open_image, sized
from plurum.models import model_from_checkpoint, normalised
from plurum.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ENSEMBLE", "Evidence", "EvidenceMap", "grad_cam", "overlay"]

ENSEMBLE = "the ensemble"
Map = npt.NDArray[np.float32]
# With fewer places than this on a side a map says nothing about where; a small image's last layers have one.
_LEAST_PLACES = 4
_SHOWN_SIDE = 384
# From nothing to most: dark blue, violet, orange, pale yellow; told apart without colour vision, too.
_COLOURS = ((20, 18, 70), (122, 28, 109), (237, 105, 37), (252, 255, 164))


@dataclass(frozen=True)
class EvidenceMap:
    """What one member, or all of them, looked at.

    Attributes:
        name: The member's, or `ENSEMBLE`.
        places: `(rows, columns)` of the map before it was laid over the image; None where there is none.
        picture: PNG of the image with the map over it, as the member saw it: stretched or cut; empty without a map.
        note: In words, for people.
    """

    name: str
    places: tuple[int, int] | None
    picture: bytes
    note: str


class Evidence:
    """The members of a fitted run, ready to be asked where they looked; may be used from several threads.

    Args:
        run: With its checkpoints, which are read when the first image is asked about.

    Raises:
        ContractError: no run, or one that is not fitted, or a checkpoint is missing.
        MissingExtraError: torch, timm or safetensors is not installed.
    """

    def __init__(self, run: Run) -> None:
        self.ensemble = run.ensemble()
        self._run = run
        self._models: list[nn.Module] | None = None
        # One after the other: torch uses all cores for one image.
        self._lock = threading.Lock()
        with needs_extra("training", "torch", "timm", "safetensors"):
            for member in self.ensemble.members:
                if not run.checkpoint(member).is_file():
                    raise ContractError(f"{run.checkpoint(member)} is missing; train the member {member.name!r} again")

    def mismatch(self, classes: Sequence[str], members: Sequence[str], checkpoints: Sequence[str]) -> str:
        """Return in one line why what is served is not this run; empty if it is.

        Args:
            classes: Served, by name.
            members: Likewise.
            checkpoints: SHA-256 of the served members' weights; none where a server keeps that to itself.
        """
        ours = self.ensemble
        if tuple(members) != tuple(one.name for one in ours.members) or tuple(classes) != ours.classes:
            return f"{self._run.path} is not the run that is served: its classes or members are others"
        if checkpoints and tuple(checkpoints) != tuple(one.sha256 for one in ours.members):
            return f"{self._run.path} is not the run that is served: its members have other weights"
        return ""

    def maps(self, data: bytes, label: str) -> tuple[EvidenceMap, ...]:
        """Return the map of the ensemble, then those of its members in their order, of what speaks for `label`.

        The ensemble's is the mean of its members', weighted as the vote is.

        Raises:
            ContractError: `label` is no class of the run, or a checkpoint is not the one of the contract.
            ImageError: `data` is no image that can be read.
        """
        import torch

        spec = self.ensemble.image
        if label not in self.ensemble.classes:
            raise ContractError(f"{self._run.path} knows no class {label!r}")
        try:
            image = eight_bit(open_image(data))
        except UnreadableImageError as error:
            raise ImageError(str(error)) from error
        seen = sized(image, height=spec.height, width=spec.width, colour=spec.colour, resize=spec.resize)
        pixels = normalised(torch.from_numpy(seen.copy())[None], spec)
        with self._lock:
            index = self.ensemble.classes.index(label)
            maps = [grad_cam(model, pixels, index) for model in self._loaded()]
        shown = _as_seen(image, spec.height, spec.width, crop=spec.resize == "crop")
        names = (ENSEMBLE, *(member.name for member in self.ensemble.members))
        both = (self._vote(maps), *maps)
        return tuple(_evidence(name, values, shown, label) for name, values in zip(names, both, strict=True))

    def _loaded(self) -> list[nn.Module]:
        if self._models is None:
            members = self.ensemble.members
            self._models = [model_from_checkpoint(member, self._run.checkpoint(member)) for member in members]
        return self._models

    def _vote(self, maps: Sequence[Map | None]) -> Map | None:
        """Return the weighted mean of the maps there are, as fine as the finest."""
        weights = self.ensemble.voting.weights
        there = [
            (values, weight) for values, weight in zip(maps, weights, strict=True) if values is not None and weight
        ]
        if not there:
            return None
        size = max((values.shape for values, _ in there), key=math.prod)
        mean = sum(_resized(values, (size[1], size[0])) * np.float32(weight) for values, weight in there)
        return np.asarray(mean / sum(weight for _, weight in there), dtype=np.float32)


def grad_cam(model: nn.Module, pixels: Tensor, index: int) -> Map | None:
    """Return where `model` finds what speaks for the class `index`, or None where its architecture has no places.

    Taken from the deepest layer of timm's `feature_info` that has at least 4 x 4 places, so that small images get a
    map, too. Of a transformer it is taken before the last block, as nothing after that passes from place to place.

    Args:
        model: As timm makes them, in evaluation mode.
        pixels: Normalised, float32 `[1, 3, height, width]`.
        index: Of the class.
    """
    import torch

    outputs: dict[str, Tensor] = {}
    handles = []
    for name in _layer_names(model):
        # The default binds this turn's name.
        def keep(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = output

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        with torch.enable_grad():
            # Weights that are frozen would leave nothing to derive by.
            score = model(pixels.clone().requires_grad_())[0, index]
    finally:
        for handle in handles:
            handle.remove()
    chosen = _deepest(list(outputs.values()), model)
    if chosen is None:
        return None
    (gradient,) = torch.autograd.grad(score, chosen)
    activation, slope = (_by_place(one, model)[0].detach() for one in (chosen, gradient))
    values = (activation * slope.mean(dim=(1, 2), keepdim=True)).sum(dim=0).clamp(min=0)
    top = float(values.max())
    return np.asarray((values / top if top > 0 else values).numpy(), dtype=np.float32)


def overlay(image: Image.Image, values: Map) -> Image.Image:
    """Return the RGB `image` with a map over it: dark where nothing was found, bright where most was."""
    fine = _resized(values, image.size).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(fine, steps, [one[channel] for one in _COLOURS]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    return Image.fromarray((0.45 * grey + 0.55 * colours).round().astype(np.uint8))


def _layer_names(model: nn.Module) -> list[str]:
    """Return the layers after which timm finds features, the deepest last."""
    known = {name for name, _ in model.named_modules() if name}
    names = [str(one["module"]) for one in getattr(model, "feature_info", None) or ()]
    return [name for name in dict.fromkeys(names) if name in known]


def _deepest(outputs: Sequence[Tensor], model: nn.Module) -> Tensor | None:
    """Return the layer's output to take the map from."""
    flat = [one for one in outputs if one.ndim == 4]
    if flat:
        sides = [min(_by_place(one, model).shape[-2:]) for one in flat]
        fine = [one for one, side in zip(flat, sides, strict=True) if side >= _LEAST_PLACES]
        return fine[-1] if fine else None
    tokens = [one for one in outputs if one.ndim == 3 and math.prod(_grid(one, model)) >= _LEAST_PLACES**2]
    return tokens[-2] if len(tokens) > 1 else None


def _by_place(output: Tensor, model: nn.Module) -> Tensor:
    """Return a layer's output as `[1, channels, rows, columns]`."""
    if output.ndim == 4:
        last: bool = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if last else output
    rows, columns = _grid(output, model)
    # Tokens of no place, such as the class token, stand in front.
    places = output[:, output.shape[1] - rows * columns :]
    return places.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)


def _grid(tokens: Tensor, model: nn.Module) -> tuple[int, int]:
    """Return how many rows and columns tokens `[1, tokens, channels]` stand for; zeros where that is not known."""
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    extra = int(getattr(model, "num_prefix_tokens", 0) or 0)
    if size and tokens.shape[1] - math.prod(size) in {0, extra}:
        return int(size[0]), int(size[1])
    side = math.isqrt(tokens.shape[1])
    return (side, side) if side * side == tokens.shape[1] else (0, 0)


def _resized(values: Map, size: tuple[int, int]) -> Map:
    """Return a map at another size, `(columns, rows)`."""
    resized = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def _as_seen(image: Image.Image, height: int, width: int, *, crop: bool) -> Image.Image:
    """Return what of the image members see, large enough for people and in its own proportions."""
    size = (width, height) if crop else image.size
    scale = _SHOWN_SIDE / max(size)
    shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    # Squares of a small image stay squares, so that nobody takes them for detail.
    method = Image.Resampling.BILINEAR if max(image.size) > _SHOWN_SIDE else Image.Resampling.NEAREST
    return ImageOps.fit(image.convert("RGB"), shown, method)


def _evidence(name: str, values: Map | None, shown: Image.Image, label: str) -> EvidenceMap:
    if values is None:
        return EvidenceMap(name, None, b"", "No map: this architecture keeps no places to point at.")
    rows, columns = values.shape
    note = f"{rows} × {columns} places" if values.any() else f"nothing speaks for {label}"
    file = io.BytesIO()
    overlay(shown, values).save(file, "PNG")
    return EvidenceMap(name, (rows, columns), file.getvalue(), note)
