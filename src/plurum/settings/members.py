"""Settings of a member from elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from plurum.settings.options import Option, Settings

__all__ = ["AddSettings"]

_IMAGES, _ONNX = Option(panel="Images"), Option(panel="ONNX files")
Text = Annotated[str, Field(min_length=1)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


def _three_from_text(given: object) -> object:
    """Return the three numbers that commas divide; pass other values on."""
    if not isinstance(given, str):
        return given
    try:
        red, green, blue = (float(part) for part in given.split(","))
    except ValueError:
        raise ValueError("expected three numbers, such as 0.485,0.456,0.406") from None
    return red, green, blue


def _names_from_text(given: object) -> object:
    """Return the names that commas divide; pass other values on."""
    return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else given


_Three = BeforeValidator(_three_from_text)


class AddSettings(Settings):
    """Settings of a member from elsewhere: what its file does not state.

    Attributes:
        classes: Comma-separated class names of the run, in the order of the model's outputs, such as CE,LAA.
        mean: Per-channel mean that the model's inputs are normalised with, on a scale of 0 to 1.
        std: Per-channel standard deviation that the model's inputs are normalised with, on a scale of 0 to 1.
        arch: Architecture of a file of weights: a timm name, torchvision:NAME, monai:NAME, or trusted code that makes
            the model, as package.module:FUNCTION or FILE.py:FUNCTION.
        name: Name of the member. By default, the file's.
        image_size: Height and width of the model's input in pixels; an ONNX file may state them.
        outputs: Kind of the model's outputs; needed for an ONNX file. By default, a module returns logits.
        input: Name of an ONNX file's input. By default, its only one.
        output: Name of an ONNX file's output. By default, its only one.
        layout: Order of the dimensions of an ONNX file's input. By default, as its three channels show.
    """

    classes: Annotated[
        tuple[Text, ...], Field(min_length=2), BeforeValidator(_names_from_text), Option(type=str, metavar="NAMES")
    ]
    mean: Annotated[tuple[Mean, Mean, Mean], _Three, Option(panel="Images", type=str, metavar="R,G,B")]
    std: Annotated[tuple[Deviation, Deviation, Deviation], _Three, Option(panel="Images", type=str, metavar="R,G,B")]
    arch: Annotated[Text | None, Option(metavar="ARCH")] = None
    name: Annotated[Text | None, Option(metavar="NAME")] = None
    image_size: Annotated[Annotated[int, Field(ge=8, le=4096)] | None, _IMAGES] = None
    outputs: Literal["logits", "probabilities"] | None = None
    input: Annotated[str, _ONNX] = ""
    output: Annotated[str, _ONNX] = ""
    layout: Annotated[Literal["NCHW", "NHWC"] | None, _ONNX] = None
