"""Settings of training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from plurum.conventions import ResizeRule
from plurum.settings.options import Option, Settings

__all__ = ["Draws", "EvaluationSettings", "Percentiles", "Seed", "Text", "TrainOptions", "TrainSettings"]

_MEMBERS, _IMAGES, _PATIENTS = Option(panel="Members"), Option(panel="Images"), Option(panel="Patients", metavar="FILE")
_STEPS, _CHANGES, _WORK = Option(panel="Optimisation"), Option(panel="Augmentation"), Option(panel="Execution")

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Draws = Annotated[int, Field(ge=100, le=100_000)]


def _window_from_text(given: object) -> object:
    """Return the two numbers that a comma divides, as percentiles or not; pass other values on."""
    if not isinstance(given, str) or given == "full":
        return given
    first, _, second = given.partition(",")
    try:
        if not (first.endswith("%") and second.endswith("%")):
            return float(first), float(second)
        return Percentiles(lowest=float(first[:-1]), highest=float(second[:-1]))
    except ValueError:
        raise ValueError(
            "expected CENTRE,WIDTH, such as 40,400, or rising percentiles LOW%,HIGH%, such as 0.1%,99.9%, or full"
        ) from None


class Percentiles(BaseModel):
    """Percentiles of the training images' values, to which `plurum train` fits a window.

    Attributes:
        lowest: Percentile that becomes 0, from 0 to 100.
        highest: Percentile that becomes 255, from 0 to 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lowest: Annotated[float, Field(ge=0, lt=100)]
    highest: Annotated[float, Field(gt=0, le=100)]

    @model_validator(mode="after")
    def _rise(self) -> Percentiles:
        if self.lowest >= self.highest:
            raise ValueError(f"expected rising percentiles, got {self.lowest:g}%,{self.highest:g}%")
        return self


class TrainSettings(Settings):
    """Settings of the members to train.

    Attributes:
        archs: A timm architecture, or a model of timm as hf-hub:OWNER/NAME or local-dir:FOLDER; repeat for every
            member. A repeated architecture is trained again from another seed.
        seeds: Number of times that every architecture is trained, with different seeds.
        snapshots: Learning-rate cycles per training; the best weights of each cycle become a member (Huang et al.,
            arXiv 1704.00109).
        folds: Number of parts for cross-validation: every architecture is trained once without each part, so that
            validation images are learnt from too. Needs calibration images, such as those of `--certification`.
        pretrained: If True, start from timm's pretrained weights (downloads them) and normalise inputs as for them.
        freeze: If True, train only the classifying layer, on features of the images that are computed once and cached.
        unfreeze_last: With `--freeze`, also train this many of the last layers, such as a transformer's blocks; then
            nothing is cached.
        views: With `--freeze`, number of fixed versions of each training image: the image itself, and augmented ones.
        seed: Random seed of splits, weights, batches and augmentation; member i uses this seed + i.
        image_size: Height and width of the members' input in pixels. By default, 224 for files; for arrays their own
            size, at least 32.
        colour: Colour mode of the members' input.
        resize: Resize rule: `stretch` to a square, `crop` the centre to a square first, or `pad` to a square with the
            training images' mean.
        window: Rule that maps grey images of more than 8 bits, and grey DICOM images, to 8 bits: a window, such as
            40,400 in Hounsfield units; percentiles of the training images to fit it to, such as 0.1%,99.9%; or `full`
            for the range of each file's type. By default, the high byte of 16 bits, and each DICOM file's own window.
        tile_size: Cut larger images into square tiles of this many pixels a side. By default, images stay whole.
        max_tiles: Largest number of tiles per image; those with the most tissue are kept.
        skip_unreadable: If True, skip images that can't be read instead of refusing the data.
        certification: Fraction of each class's training patients (or images) to set aside: half of them calibrate
            prediction sets, half certify what `plurum fit` promises. 0 sets none aside.
        epochs: Epochs per training, over all its learning-rate cycles.
        batch_size: Images per forward pass, over all devices; at least 2, for batch normalisation.
        accumulate: Gradient accumulation: forward passes per optimiser step, for larger batches in less memory.
        learning_rate: Learning rate of AdamW after warm-up.
        weight_decay: Weight decay of AdamW; not applied to biases and normalisation layers.
        warmup_share: Fraction of steps for learning-rate warm-up; then the rate falls along a cosine, once per cycle.
        clip_norm: Largest gradient norm; some architectures diverge early without clipping. 0 disables clipping.
        label_smoothing: Label smoothing, 0 to below 1.
        balance: Class balancing: `weights` weighs each image by 1 / images of its class in the loss, `sampling` draws
            all classes equally often.
        ema: Decay of an exponential moving average of the weights, which is then validated and saved, such as 0.999; 0
            disables it.
        patience: Stop after this many epochs without a better validation NLL. By default, never.
        shift: Largest random shift, as a fraction of the image size, 0 to 0.5.
        flip: If True, mirror half of the images, left to right.
        rotate: Largest random rotation in degrees; 180 for tissue, which has no fixed orientation.
        jitter: Largest random change of brightness, contrast and saturation, as a fraction, such as 0.2; hue changes by
            an eighth of it.
        gamma: Largest change of gamma: the exponent is between 1 / (1 + gamma) and 1 + gamma, for other exposures.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        noise: Largest standard deviation of Gaussian noise, as a fraction of the range of values, such as 0.05.
        elastic: Largest elastic distortion: how far any point moves, as a fraction of the image size, such as 0.05.
        erase: Fraction of images in which a random rectangle is replaced by the mean (arXiv 1708.04896).
        trivial_augment: If True, change each image first by one random operation of random strength (TrivialAugment,
            arXiv 2103.10158).
        mixup: Alpha of MixUp (arXiv 1710.09412), such as 0.2; 0 disables it.
        cutmix: Alpha of CutMix (arXiv 1905.04899), such as 1; 0 disables it. With MixUp too, each batch gets one of the
            two.
        precision: Training precision. `auto` is fp16 on CUDA, bf16 for large images on CPUs that compute in it, else
            fp32.
        compile: If True, compile models with torch.compile, which needs a C++ compiler and takes minutes.
    """

    archs: Annotated[
        tuple[Text, ...], Field(min_length=1, max_length=64), Option("--arch", panel="Members", metavar="ARCH")
    ]
    seeds: Annotated[int, Field(ge=1, le=64), _MEMBERS] = 1
    snapshots: Annotated[int, Field(ge=1, le=64), _MEMBERS] = 1
    folds: Annotated[Annotated[int, Field(ge=2, le=20)] | None, _MEMBERS] = None
    pretrained: Annotated[bool, _MEMBERS] = False
    freeze: Annotated[bool, _MEMBERS] = False
    unfreeze_last: Annotated[int, Field(ge=0, le=1000), _MEMBERS] = 0
    views: Annotated[int, Field(ge=1, le=1000), _MEMBERS] = 1
    seed: Annotated[Seed, _MEMBERS] = 0
    image_size: Annotated[int | None, Field(ge=8, le=4096), _IMAGES] = None
    colour: Annotated[Literal["rgb", "grey"], _IMAGES] = "rgb"
    resize: Annotated[ResizeRule, _IMAGES] = "stretch"
    window: Annotated[
        tuple[FiniteFloat, Annotated[float, Field(ge=1, allow_inf_nan=False)]] | Percentiles | Literal["full"] | None,
        BeforeValidator(_window_from_text),
        Option(panel="Images", metavar="RULE", type=str),
    ] = None
    tile_size: Annotated[int | None, Field(ge=8, le=8_000), _IMAGES] = None
    max_tiles: Annotated[int, Field(ge=1, le=100_000), _IMAGES] = 16
    skip_unreadable: Annotated[bool, _IMAGES] = False
    certification: Annotated[float, Field(ge=0, le=0.9), _IMAGES] = 0.0
    epochs: Annotated[int, Field(ge=1, le=10_000), _STEPS] = 20
    batch_size: Annotated[int, Field(ge=2, le=65_536), _STEPS] = 32
    accumulate: Annotated[int, Field(ge=1, le=1024), _STEPS] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10), _STEPS] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10), _STEPS] = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1), _STEPS] = 0.1
    clip_norm: Annotated[float, Field(ge=0, allow_inf_nan=False), _STEPS] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1), _STEPS] = 0.0
    balance: Annotated[Literal["none", "weights", "sampling"], _STEPS] = "none"
    ema: Annotated[float, Field(ge=0, lt=1), _STEPS] = 0.0
    patience: Annotated[int | None, Field(ge=1), _STEPS] = None
    shift: Annotated[float, Field(ge=0, le=0.5), _CHANGES] = 0.1
    flip: Annotated[bool, _CHANGES] = False
    rotate: Annotated[float, Field(ge=0, le=180), _CHANGES] = 0.0
    jitter: Annotated[float, Field(ge=0, le=1), _CHANGES] = 0.0
    gamma: Annotated[float, Field(ge=0, le=3), _CHANGES] = 0.0
    blur: Annotated[float, Field(ge=0, le=10), _CHANGES] = 0.0
    noise: Annotated[float, Field(ge=0, le=1), _CHANGES] = 0.0
    elastic: Annotated[float, Field(ge=0, le=0.5), _CHANGES] = 0.0
    erase: Annotated[float, Field(ge=0, le=1), _CHANGES] = 0.0
    trivial_augment: Annotated[bool, _CHANGES] = False
    mixup: Annotated[float, Field(ge=0, le=10), _CHANGES] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=10), _CHANGES] = 0.0
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], _WORK] = "auto"
    compile: Annotated[bool, _WORK] = False

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
        if self.snapshots > 1 and self.folds is not None:
            raise ValueError("--folds: can't be combined with --snapshots. Leave one of them out")
        self._check_freezing()
        return self

    def _check_freezing(self) -> None:
        """Check the options that depend on `--freeze`."""
        if not self.freeze and (self.unfreeze_last or self.views > 1):
            raise ValueError("--unfreeze-last, --views: can be used only with --freeze. Add it")
        if self.freeze and not self.pretrained:
            raise ValueError("--freeze: expected --pretrained, because random layers are no use frozen. Add it")
        if self.unfreeze_last and self.views > 1:
            raise ValueError("--views: can't be combined with --unfreeze-last, which augments in every epoch")
        given = {
            "--mixup": self.mixup,
            "--cutmix": self.cutmix,
            "--compile": self.compile,
            "--precision": self.precision not in {"auto", "fp32"},
        }
        if self.uses_features and any(given.values()):
            refused = ", ".join(name for name, value in given.items() if value)
            raise ValueError(f"{refused}: can't be combined with --freeze, which trains on features in FP32")

    @property
    def uses_features(self) -> bool:
        """True if only the classifying layer is trained, on cached features."""
        return self.freeze and not self.unfreeze_last

    @property
    def trained_archs(self) -> tuple[str, ...]:
        """Architecture of each training, in order: all of `archs`, repeated once per seed."""
        return self.archs * self.seeds


class TrainOptions(Settings):
    """Settings of the execution of a training; they do not change the trained members.

    Attributes:
        jobs: Members to train in parallel, each in a separate process.
        tensorboard: If True, write TensorBoard logs to RUN/tensorboard.
        save_every_s: Seconds between checkpoints of an unfinished member; an interruption loses at most that much work.
        fresh: If True, start over in a folder that holds another run.
        pseudonym_key_file: Key of the pseudonyms that stand for the PatientIDs of DICOM images; made if it is missing.
            By default, `pseudonym.key` in the user's configuration.
        keep_patient_ids: If True, take the PatientIDs of DICOM images themselves as patients.
    """

    jobs: Annotated[int, Field(ge=1, le=64), _WORK] = 1
    tensorboard: Annotated[bool, _WORK] = False
    save_every_s: Annotated[float, Field(ge=0), _WORK] = 30.0
    fresh: Annotated[bool, _WORK] = False
    pseudonym_key_file: Annotated[Path | None, _PATIENTS] = None
    keep_patient_ids: Annotated[bool, _PATIENTS] = False


class EvaluationSettings(Settings):
    """Settings of an evaluation.

    Attributes:
        split: Images of the run to evaluate on.
        positive: Class that counts as positive in sensitivity, specificity, PPV, NPV and the decision curve. By
            default, each class in turn.
        prevalence: Fraction of the positive class where the ensemble serves, for PPV, NPV and net benefit. By default,
            as in the images.
        by: Column of the manifest, such as `site` or `scanner`, to evaluate by group; repeat for several.
        corruptions: If True, evaluate also on corrupted copies of the images: noise, blur, JPEG, brightness, contrast,
            crop, rotation and stain shift at three strengths. Predicts each image 24 times more.
        draws: Bootstrap resamples, by patient, for the confidence intervals.
        seed: Random seed of the bootstrap, the corruptions and the test for drift.
    """

    split: Literal["validation", "test"] = "test"
    positive: Annotated[Text | None, Option(metavar="CLASS")] = None
    prevalence: Annotated[float | None, Field(gt=0, lt=1)] = None
    by: Annotated[tuple[Text, ...], Option(metavar="COLUMN")] = ()
    corruptions: bool = False
    draws: Draws = 1000
    seed: Seed = 0
