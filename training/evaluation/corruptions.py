"""Corrupt images as scanners, files and laboratories do, at three strengths.

Kinds and magnitudes follow Hendrycks & Dietterich (arXiv 1903.12261) where both have them. A stain shift scales the
densities of haematoxylin, eosin and residual (Ruifrok & Johnston 2001; Tellez et al., arXiv 1902.06543). Lengths are
fractions of the image's shorter side, so that the same setting means the same at every input size.

Images are uint8 `[height, width, 3]` at the members' input size, before and after.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from plurum.predictions.arrays import Bytes, Floats, Ints

__all__ = ["CORRUPTIONS", "Corruption", "blur", "corrupt_blocks", "corruption_ways"]

_BLOCK = 64
# Optical densities of haematoxylin, eosin and residual in red, green and blue (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        strengths: Settings of the three strengths, the weakest first.
        setting: Text of a setting, with `{}` for its value.
        apply: Function of an image, a setting and a random generator; returns an image of the same shape.
    """

    strengths: tuple[float, float, float]
    setting: str
    apply: Callable[[Bytes, float, np.random.Generator], Bytes]


def blur(image: Bytes, sigma_px: float) -> Bytes:
    """Return an image blurred by a Gaussian of this standard deviation, in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def _noise(image: Bytes, deviation: float, rng: np.random.Generator) -> Bytes:
    return _pixels(image + rng.normal(0, 255 * deviation, image.shape))


def _blur(image: Bytes, fraction: float, _: np.random.Generator) -> Bytes:
    return blur(image, fraction * min(image.shape[:2]))


def _jpeg(image: Bytes, quality: float, _: np.random.Generator) -> Bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def _brightness(image: Bytes, added: float, _: np.random.Generator) -> Bytes:
    return _pixels(image.astype(np.float64) + 255 * added)


def _contrast(image: Bytes, kept: float, _: np.random.Generator) -> Bytes:
    mean = float(image.mean())
    return _pixels(mean + kept * (image.astype(np.float64) - mean))


def _crop(image: Bytes, kept: float, _: np.random.Generator) -> Bytes:
    height, width = image.shape[:2]
    top, left = height * (1 - kept) / 2, width * (1 - kept) / 2
    resized = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, width - left, height - top)
    )
    return np.asarray(resized)


def _rotation(image: Bytes, degrees: float, rng: np.random.Generator) -> Bytes:
    """Rotate to a random side; corners get the median colour of the border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    angle = degrees * rng.choice([-1, 1])
    rotated = Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))
    return np.asarray(rotated)


def _stain(image: Bytes, change: float, rng: np.random.Generator) -> Bytes:
    """Scale each stain's density up or down."""
    densities = -np.log(np.maximum(image, 1) / 255) @ np.linalg.inv(_STAINS)
    scaled = densities * (1 + change * rng.choice([-1, 1], 3))
    return _pixels(255 * np.exp(-scaled @ _STAINS))


def _pixels(values: Floats) -> Bytes:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption((0.04, 0.08, 0.16), "deviation {} of the range", _noise),
    "blur": Corruption((0.01, 0.02, 0.04), "Gaussian, sigma {} of the shorter side", _blur),
    "JPEG": Corruption((40, 20, 8), "quality {:.0f}", _jpeg),
    "brightness": Corruption((0.1, 0.2, 0.4), "{} of the range added", _brightness),
    "contrast": Corruption((0.7, 0.4, 0.2), "{} of the contrast kept", _contrast),
    "crop": Corruption((0.9, 0.75, 0.6), "{} of each side kept", _crop),
    "rotation": Corruption((10, 20, 45), "{:.0f}° to either side", _rotation),
    "stain": Corruption((0.1, 0.25, 0.5), "densities changed by {}", _stain),
}


def corrupt_blocks(pixels: Bytes, rows: Ints, seed: int) -> Iterator[Bytes]:
    """Yield the images corrupted in every way of `corruption_ways`, in blocks `[images, height, width, 3]`.

    Each image's corruption depends on the seed, the kind, the strength and its row alone.

    Args:
        pixels: All images, `[images, height, width, 3]`.
        rows: Indices of the images to corrupt, `[images]`.
        seed: Random seed.
    """
    for kind, strength in corruption_ways():
        one, number = CORRUPTIONS[kind], list(CORRUPTIONS).index(kind)
        setting = one.strengths[strength - 1]
        for start in range(0, len(rows), _BLOCK):
            yield np.stack(
                [
                    one.apply(np.asarray(pixels[row]), setting, np.random.default_rng([seed, number, strength, row]))
                    for row in rows[start : start + _BLOCK].tolist()
                ]
            )


def corruption_ways() -> list[tuple[str, int]]:
    """Return kind and strength, from 1 on, of every way to corrupt an image."""
    return [(kind, strength) for kind, one in CORRUPTIONS.items() for strength in range(1, len(one.strengths) + 1)]
