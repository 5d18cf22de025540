"""What a training and a fit may be asked for, and what a run remembers of it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plurum.options import settings_from
from plurum.spec import Contract, PatientRule, Text

__all__ = ["Begun", "FitSettings", "TrainSettings", "settings_from"]


class TrainSettings(BaseModel):
    """Options of `plurum train`.

    Attributes:
        archs: What `timm.create_model` takes, one per member; a name that comes twice is trained twice, from
            different seeds.
        seeds: How often all of `archs` are trained, each time from other seeds.
        snapshots: Into how many cycles a training is cut; each becomes a member (Huang et al., arXiv 1704.00109).
        epochs: How often each member sees the training images, over all its cycles.
        batch_size: Images per forward pass, over all devices together; at least 2, for batch normalisation.
        accumulate: Passes whose gradients make one step: a batch of `batch_size * accumulate` in less memory.
        learning_rate: Of AdamW, after warm-up.
        weight_decay: Of AdamW; spares biases and normalisation.
        warmup_share: Share of all steps in which the learning rate rises; it falls by a cosine afterwards, and once
            per cycle where there are several.
        clip_norm: Gradients are cut to this norm: early steps at a full learning rate throw some architectures off
            otherwise. 0 leaves them whole.
        label_smoothing: 0 to below 1.
        balance: Against unequal classes: `weights` weighs each image by 1 / images of its class, `sampling` draws
            all classes equally often.
        shift: Training images are moved by up to this share of their size, at random; 0 to 0.5.
        flip: Mirror every other training image; wrong where left and right mean something, as in digits.
        rotate: Turn training images by up to so many degrees either way; 180 for tissue, which has no up.
        jitter: Change brightness, contrast and saturation by up to this share, hue by an eighth of it; 0 to 1.
        mixup: Alpha of MixUp (arXiv 1710.09412); 0 mixes nothing.
        cutmix: Alpha of CutMix (arXiv 1905.04899); with MixUp too, each batch takes one of them.
        ema: Decay of an exponential moving average of the weights, which is what is then judged and kept; 0 is none.
        patience: Stop after so many epochs without a better validation NLL; None never does.
        compile: Let `torch.compile` make the model faster; it needs a C++ compiler, and minutes.
        seed: What splits, weights, batches and augmentation are drawn from; member i takes `seed + i`.
        precision: `auto` is fp16 on CUDA, bf16 on CPUs that compute in it where images are large, else fp32.
        pretrained: Start from timm's weights, which are downloaded, and normalise as ImageNet's.
        image_size: Height and width of what members see; None is the data's own (at least 32) for arrays and 224
            for files.
        colour: As in the image spec.
        resize: As in the image spec.
        tile_size: Cut larger images of files into squares of so many of their pixels; None takes each as a whole.
        max_tiles: Of one image; those with the most in them.
        skip_unreadable: Leave out images that can't be read, rather than refuse the data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    archs: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    seeds: Annotated[int, Field(ge=1, le=64)] = 1
    snapshots: Annotated[int, Field(ge=1, le=64)] = 1
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    flip: bool = False
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Annotated[int, Field(ge=1)] | None = None
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    pretrained: bool = False
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    colour: Literal["rgb", "grey"] = "rgb"
    resize: Literal["stretch", "crop"] = "stretch"
    tile_size: Annotated[int, Field(ge=8, le=8_000)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=100_000)] = 16
    skip_unreadable: bool = False

    @model_validator(mode="after")
    def _parts_agree(self) -> TrainSettings:
        if self.snapshots > self.epochs:
            raise ValueError(
                f"--snapshots is {self.snapshots} and --epochs {self.epochs}; each snapshot takes one epoch at least"
            )
        if self.snapshots > 1 and self.patience is not None:
            raise ValueError("--patience would end a training before its --snapshots; name one of the two")
        return self

    @property
    def trained_archs(self) -> tuple[str, ...]:
        """One per training, in their order: all of `archs`, as often as there are seeds."""
        return self.archs * self.seeds


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
