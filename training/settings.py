"""Settings of training and fitting, and the settings that a run records in `run.json`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plurum.options import option_from_field, settings_from
from plurum.spec import Metadata, PatientRule, Text

__all__ = ["FitSettings", "RunSettings", "TrainSettings", "option_from_field", "settings_from"]


class TrainSettings(BaseModel):
    """Options of `plurum train`.

    Attributes:
        archs: Architecture names for `timm.create_model`, one per member. A repeated name is trained again from
            another seed.
        seeds: Number of times that all of `archs` are trained, each time from new seeds.
        snapshots: Number of learning-rate cycles per training; each cycle yields a member (Huang et al., arXiv
            1704.00109).
        epochs: Passes over the training images per training, over all its cycles.
        batch_size: Images per forward pass, over all devices; at least 2, for batch normalisation.
        accumulate: Forward passes whose gradients make one step: a batch of `batch_size * accumulate` in less memory.
        learning_rate: Peak learning rate of AdamW, after warm-up.
        weight_decay: Weight decay of AdamW; not applied to biases and normalisation layers.
        warmup_share: Fraction of all steps in which the learning rate rises. It then falls along a cosine, once per
            cycle.
        clip_norm: Largest gradient norm; larger gradients are scaled down to it, because early steps at the full
            learning rate make some architectures diverge. 0 disables clipping.
        label_smoothing: Label smoothing, from 0 to below 1.
        balance: Treatment of unequal classes: `weights` weighs each image by 1 / images of its class, `sampling`
            draws all classes equally often.
        shift: Largest random shift of training images, as a fraction of their size; 0 to 0.5.
        flip: If True, mirror half of the training images at random. Not for images in which left and right differ,
            such as digits.
        rotate: Largest random rotation of training images, in degrees either way; 180 suits tissue, which has no
            fixed orientation.
        jitter: Largest relative change of brightness, contrast and saturation; hue changes by an eighth of it. 0 to 1.
        mixup: Alpha of MixUp (arXiv 1710.09412); 0 disables it.
        cutmix: Alpha of CutMix (arXiv 1905.04899); 0 disables it. With MixUp too, each batch gets one of the two.
        ema: Decay of an exponential moving average of the weights, which is then validated and saved; 0 disables it.
        patience: Epochs without a better validation NLL after which a training stops; None disables early stopping.
        compile: If True, compile the model with `torch.compile`, which needs a C++ compiler and takes minutes.
        seed: Random seed of splits, weights, batches and augmentation; member i uses `seed + i`.
        precision: Training precision. `auto` is fp16 on CUDA, bf16 for large images on CPUs that compute in it, else
            fp32.
        pretrained: If True, download timm's pretrained weights, start from them and normalise as for ImageNet.
        image_size: Height and width of the members' input in pixels. None is 224 for files, and for arrays their own
            size, at least 32.
        colour: Colour mode of the image spec.
        resize: Resize rule of the image spec.
        tile_size: Side of the square tiles that larger image files are cut into, in pixels of the file; None keeps
            images whole.
        max_tiles: Largest number of tiles per image; the tiles with the most tissue are kept.
        skip_unreadable: If True, leave out unreadable images instead of refusing the data.
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
                f"--snapshots: expected at most {self.epochs}, the number of --epochs, got {self.snapshots}. "
                f"Each snapshot takes at least one epoch"
            )
        if self.snapshots > 1 and self.patience is not None:
            raise ValueError(
                "--patience: can't be combined with --snapshots, because it would end a training before its last "
                "snapshot. Leave one of them out"
            )
        return self

    @property
    def trained_archs(self) -> tuple[str, ...]:
        """Architecture of each training, in order: all of `archs`, repeated once per seed."""
        return self.archs * self.seeds


class FitSettings(BaseModel):
    """Options of `plurum fit`.

    Attributes:
        mode: Voting mode: `soft` averages probabilities, `hard` counts votes, `stack` fits a logistic regression to
            the members' probabilities.
        select: Member selection: `backward` removes members without which the vote is better by a statistically
            significant margin, `greedy` repeatedly adds the member that helps most, `all` keeps all.
        l2: Strength of the L2 penalty on stacking's coefficients, scikit-learn's 1 / C.
        alpha: Largest fraction of images whose true class the prediction set may miss, per class.
        risk: Target error rate among predictions that are not sent to review.
        prior: Fraction of each class among the images to be served, by class name; None takes those of the data.
        prior_from: Unlabelled images to estimate `prior` from: a folder, or a CSV with a column `path`.
        patient_rule: Rule that combines the predictions for a patient's images, where patients are known.
        draws: Number of bootstrap resamples for comparing votes.
        seed: Random seed of the bootstrap and of stacking's folds.
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
            raise ValueError(
                f"--select: greedy selects the weights of a soft vote; expected --mode soft, got --mode {self.mode}"
            )
        if self.prior is not None and self.prior_from is not None:
            raise ValueError("--prior: can't be combined with --prior-from, which estimates it. Leave one of them out")
        if self.mode == "hard" and (self.prior or self.prior_from):
            raise ValueError(
                "--prior: corrects probabilities, and --mode hard has vote counts instead. Choose --mode soft or stack"
            )
        if self.prior is not None and not math.isclose(sum(self.prior.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"--prior: expected a sum of 1, got {sum(self.prior.values()):g}")
        return self


class RunSettings(Metadata):
    """Data source and settings of a run, as `run.json` records them.

    Attributes:
        version: Version of the file format.
        data: Data source, as given to `plurum train`.
        settings: All training settings, defaults included.
    """

    version: Literal[1] = 1
    data: Text
    settings: TrainSettings
