"""What a training and a fit may be asked for, and what a run remembers of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plurum.errors import SettingsError
from plurum.spec import Contract, Text

__all__ = ["Begun", "FitSettings", "TrainSettings", "settings_from"]

_S = TypeVar("_S", bound=BaseModel)


class TrainSettings(BaseModel):
    """Options of `plurum train`.

    Attributes:
        archs: What `timm.create_model` takes, one per member; a name that comes twice is trained twice, from
            different seeds.
        epochs: How often each member sees the training images.
        batch_size: Images per step; at least 2, for batch normalisation.
        learning_rate: Of AdamW, after warm-up.
        weight_decay: Of AdamW; spares biases and normalisation.
        warmup_share: Share of all steps in which the learning rate rises; it falls by a cosine afterwards.
        label_smoothing: 0 to below 1.
        shift: Training images are moved by up to this share of their size, at random; 0 to 0.5.
        flip: Mirror every other training image; wrong where left and right mean something, as in digits.
        seed: What splits, weights, batches and augmentation are drawn from; member i takes `seed + i`.
        precision: `auto` is fp16 on CUDA, bf16 on CPUs that compute in it, else fp32.
        pretrained: Start from timm's weights, which are downloaded, and normalise as ImageNet's.
        image_size: Height and width of what members see; None is the data's own (at least 32) for arrays and 224
            for files.
        colour: As in the image spec.
        resize: As in the image spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    archs: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    flip: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    pretrained: bool = False
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    colour: Literal["rgb", "grey"] = "rgb"
    resize: Literal["stretch", "crop"] = "stretch"


class FitSettings(BaseModel):
    """Options of `plurum fit`.

    Attributes:
        mode: Soft votes average probabilities, hard votes count winners.
        alpha: The share of true classes that a prediction set may miss, per class.
        risk: The share of wrong answers wished for among those that no person looks at.
        draws: Of the bootstrap that compares fitted weights with equal ones.
        seed: What those are drawn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["soft", "hard"] = "soft"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    risk: Annotated[float, Field(ge=0, le=1)] = 0.01
    draws: Annotated[int, Field(ge=100, le=1_000_000)] = 1000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Begun(Contract):
    """What a run was begun with, as `run.json` states it.

    Attributes:
        version: Of this format.
        data: As it was named to `plurum train`.
        settings: All of them, defaults too.
    """

    version: Literal[1] = 1
    data: Text
    settings: TrainSettings


def settings_from(kind: type[_S], **values: Any) -> _S:
    """Return the settings that `values` state.

    Raises:
        SettingsError: some can't be used; all of them are named, as options of the command line.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        faults = (
            f"--{'-'.join(str(fault['loc'][0]).split('_'))} is {fault['input']!r}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise SettingsError("; ".join(faults)) from error
