"""What a training and a fit may be asked for, and what a run remembers of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plurum.errors import SettingsError
from plurum.spec import Contract, PatientRule, Text

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
        mode: Soft votes average probabilities, hard votes count winners, `stack` fits a logistic regression to what
            the members answer.
        select: Which members vote: `backward` leaves out those without which the vote is better beyond chance,
            `greedy` takes who helps most, again and again, `all` takes all.
        l2: Strength of the penalty on stacking's coefficients, scikit-learn's 1 / C.
        alpha: The share of true classes that a prediction set may miss, per class.
        risk: The share of wrong answers wished for among those that no person looks at.
        prior: The share of each class among the images to be served, by name, where it is not as in the data.
        prior_from: Unlabelled images to estimate it from: a folder, or a CSV with a column `path`.
        patient_rule: How the answers to a patient's images become one, where patients are known.
        draws: Of the bootstraps that compare votes.
        seed: What those, and stacking's folds, are drawn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["soft", "hard", "stack"] = "soft"
    select: Literal["backward", "greedy", "all"] = "backward"
    l2: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    risk: Annotated[float, Field(ge=0, le=1)] = 0.01
    prior: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    prior_from: Text | None = None
    patient_rule: PatientRule = "mean"
    draws: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _parts_agree(self) -> FitSettings:
        if self.select == "greedy" and self.mode != "soft":
            raise ValueError(f"--select greedy gives weights to a soft vote, and --mode {self.mode} has none")
        if self.prior is not None and self.prior_from is not None:
            raise ValueError("--prior states what --prior-from estimates; name one of them")
        if self.mode == "hard" and (self.prior or self.prior_from):
            raise ValueError("--prior corrects probabilities, and the shares of --mode hard are none")
        if self.prior is not None and not math.isclose(sum(self.prior.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"--prior adds up to {sum(self.prior.values()):g}, not to 1")
        return self


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
        raise SettingsError("; ".join(_fault(**fault) for fault in error.errors(include_url=False))) from error


def _fault(loc: tuple[int | str, ...], msg: str, input: object, **_: object) -> str:  # noqa: A002 - pydantic's name
    if not loc:
        return msg.removeprefix("Value error, ")
    return f"--{str(loc[0]).replace('_', '-')} is {input!r}: {msg}"
