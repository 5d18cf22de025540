"""Metadata of one model: its input, its weights and its scores, as `member.json` states them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, JsonValue, SerializerFunctionWrapHandler, model_serializer

from plurum.conventions import ResizeRule
from plurum.spec.fields import Classes, Metadata, Name, Sha256, Share, Text

__all__ = ["IMAGE", "INPUT_PIXELS", "LOGITS", "NOVELTY", "ImageSpec", "Member", "Scores"]

# Tensor names in requests, and of the members' outputs; `plurum.predictions.outputs` has those of the ensemble.
IMAGE = "IMAGE"
INPUT_PIXELS = "PIXELS"
LOGITS = "LOGITS"
NOVELTY = "NOVELTY"


class ImageSpec(Metadata):
    """Input of a member: size, colour and normalisation; `plurum.images` implements it.

    Attributes:
        height: Height in pixels.
        width: Width in pixels.
        colour: Colour mode; `grey` converts to luminance, so that the three channels are equal.
        resize: Resize rule; `stretch` ignores the aspect ratio, `crop` crops the centre to it first, `pad` keeps it and
            fills the sides with the mean.
        mean: Per-channel mean that the graph subtracts, on a scale of 0 to 1.
        std: Per-channel standard deviation that the graph divides by, on a scale of 0 to 1.
        window: Rule that maps grey images of more than 8 bits and DICOM to 8 bits: centre and width of a window, or
            `full` for the range of each file's type. None takes the high byte of 16 bits and the window of each DICOM
            file. Absent in files if None.
        reduced_decoding: True if JPEGs that are much larger than the input are decoded at a reduced scale. Absent in
            files if False.
    """

    height: Annotated[int, Field(ge=8, le=4096)]
    width: Annotated[int, Field(ge=8, le=4096)]
    colour: Literal["rgb", "grey"] = "rgb"
    resize: ResizeRule = "stretch"
    mean: tuple[Share, Share, Share]
    std: tuple[
        Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]
    ]
    window: tuple[FiniteFloat, Annotated[float, Field(ge=1, allow_inf_nan=False)]] | Literal["full"] | None = None
    reduced_decoding: bool = False

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer fields that have their defaults, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        newer = {"window": None, "reduced_decoding": False}
        return {name: value for name, value in values.items() if name not in newer or value != newer[name]}

    def is_decoded_like(self, other: ImageSpec) -> bool:
        """Return True if images are decoded by one rule for both.

        Members may differ in size, mean and std, and in reduced decoding, which hardly changes pixels.
        """
        return (self.colour, self.resize, self.window) == (other.colour, other.resize, other.window)

    @property
    def resizing(self) -> dict[str, Any]:
        """Keyword arguments of `plurum.images.pixels_from_image`."""
        # Metadata are read without Pillow, too.
        from plurum.images import resizing_from_spec

        return resizing_from_spec(self.model_dump())

    @property
    def decoding(self) -> dict[str, Any]:
        """Keyword arguments of `plurum.images.open_image`."""
        from plurum.images import decoding_from_spec

        return decoding_from_spec(self.model_dump())


class Scores(Metadata):
    """Scores of predictions against labels.

    Attributes:
        images: Number of images.
        accuracy: Fraction of correct predictions, 0 to 1.
        nll: Mean negative log-likelihood of the true class, in nats.
    """

    images: Annotated[int, Field(ge=1)]
    accuracy: Share
    nll: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Member(Metadata):
    """Metadata of a trained classifier, stored in `member.json`.

    Attributes about the training are None if the weights come from elsewhere.

    Attributes:
        version: Version of this format.
        name: Name of the member, used for its folder, its Triton model and its metric label.
        format: Kind of the checkpoint: weights of a timm architecture (safetensors), or an ONNX graph, IMAGES → LOGITS.
            Absent in files if `timm`.
        arch: Architecture for `timm.create_model`; for an ONNX graph, its origin in words.
        model_args: Other arguments for `timm.create_model`, if the weights come from a model that was made with some.
            Absent in files if there are none.
        checkpoint: File with the weights or the graph, relative to `member.json`.
        sha256: SHA-256 of the checkpoint.
        classes: Class names, in the order of the outputs.
        image: Image spec of the training. Its size, mean and std may differ from those that a server decodes with; the
            graph resizes and normalises.
        parameters: Number of weights.
        seed: Random seed of the training.
        precision: Arithmetic of the training.
        epochs: Number of epochs trained.
        best_epoch: Epoch whose weights were kept, from 1.
        validation: Scores on the run's validation images; with folds, on the training images of the member's fold.
    """

    version: Literal[1] = 1
    name: Name
    format: Literal["timm", "onnx"] = "timm"
    arch: Text
    model_args: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Text = "checkpoint.safetensors"
    sha256: Sha256
    classes: Classes
    image: ImageSpec
    parameters: Annotated[int, Field(ge=1)]
    seed: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    validation: Scores | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the format of timm members and empty arguments, so that older versions of Plurum read the file."""
        values: dict[str, Any] = serialise(self)
        if self.format == "timm":
            del values["format"]
        if not self.model_args:
            del values["model_args"]
        return values
