"""Settings of training, fitting and evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from plurum.conventions import PatientRule, ResizeRule
from plurum.settings.options import Option, Settings

__all__ = ["CRITERIA", "Criterion", "EvaluationSettings", "FitSettings", "Percentiles", "TrainOptions", "TrainSettings"]

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


def _shares_from_texts(given: object) -> object:
    """Return the fractions of `CLASS=SHARE` texts, by class; pass other values on."""
    if not isinstance(given, list):
        return given
    shares: dict[str, str] = {}
    for text in given:
        # Class names may contain =.
        name, _, share = text.rpartition("=")
        if not name or name in shares:
            raise ValueError("expected CLASS=SHARE once per class, such as CE=0.7")
        shares[name] = share
    return shares or None


Criterion = Literal["sensitivity", "specificity", "npv", "costs"]
# Criteria of an operating point; each is an option of a fit.
CRITERIA: tuple[Criterion, ...] = ("sensitivity", "specificity", "npv", "costs")


def _number_or_auto(given: object) -> object:
    """Return the number that a text states; pass `auto` and other values on."""
    if not isinstance(given, str) or given == "auto":
        return given
    try:
        return float(given)
    except ValueError:
        raise ValueError("expected a number from 0 to 1, or auto") from None


class FitSettings(Settings):
    """Settings of a fit.

    Attributes:
        mode: Voting mode: `soft` averages probabilities, `hard` counts votes, `stack` fits a logistic regression to
            the members' probabilities.
        select: Member selection: `backward` drops members without which the vote is significantly better, `greedy`
            adds the most helpful member repeatedly, `all` keeps every member.
        l2: L2 penalty on the coefficients of `stack`, scikit-learn's 1 / C.
        alpha: Target fraction of prediction sets that miss the true class, per class, 0 to 1.
        risk: Target error rate among predictions without review, 0 to 1. With certification patients, which `plurum
            train --certification` sets aside, it is a promise on the review risk of new patients; `auto` promises the
            smallest risk that they allow. Without, it is an estimate on validation images.
        risk_by_class: If True, the risk is also promised for the patients of each true class; needs certification
            patients.
        positive: Positive class of the operating point; only with two classes.
        sensitivity: Sensitivity for which to choose the operating point, with the highest specificity; 0 to 1.
        specificity: Specificity for which to choose the operating point, with the highest sensitivity; 0 to 1.
        npv: Negative predictive value for which to choose the operating point, 0 to 1.
        costs: CSV file with the cost of each decision, by true class, to choose the operating point by; columns true,
            decided, cost.
        confidence: Confidence with which a requested sensitivity, specificity, NPV or review risk holds for new
            patients, 0 to 1; by default 0.95.
        prior: Expected fraction of a class in production; repeat for every class. By default, as in the data.
        prior_from: Unlabelled production images to estimate class fractions from: a folder, or a .csv manifest with a
            column `path`.
        patient_rule: Rule that combines the predictions of a patient's images, where patients are known.
        cascade: If True, fit a cascade: cheap members settle the images that leave no doubt, and all members vote on
            the others. Needs certification patients, and a soft vote.
        cascade_risk: Largest fraction of patients that the cascade may hurt, 0 to 1: a correct label of the whole vote
            changes, or a review is lost. It is a promise on new patients; `auto` promises the smallest that the
            certification patients allow.
        cascade_order: Member of the cascade; repeat for every selected member, in the order in which they run. By
            default, the member with the fewest multiply–adds runs first.
        unlabelled: Images without labels, of patients that the run does not have, to certify the cascade with more
            patients: a folder, or a .csv manifest with a column `path` and, if known, `patient`. An image of an unknown
            patient counts as a patient. The run keeps a copy for export.
        audit_rate: Probability with which the server draws a patient, or an image of an unknown patient, for audit.
        no_outliers: If True, fit no test for images that are unlike the training images.
        outlier_alpha: P-value of the outlier test below which a prediction needs review, 0 to 1. At most this fraction
            of the images of new patients like yours needs review by mistake.
        draws: Bootstrap resamples, by patient, for comparing votes.
        seed: Random seed of the bootstrap, of the folds of `stack`, and of drawing training images for outliers.
    """

    mode: Literal["soft", "hard", "stack"] = "soft"
    select: Literal["backward", "greedy", "all"] = "backward"
    l2: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    risk: Annotated[
        Annotated[float, Field(ge=0, le=1)] | Literal["auto"],
        BeforeValidator(_number_or_auto),
        Option(metavar="RISK", type=str),
    ] = 0.01
    risk_by_class: bool = False
    positive: Annotated[Text | None, Option(metavar="CLASS")] = None
    sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    specificity: Annotated[float, Field(gt=0, lt=1)] | None = None
    npv: Annotated[float, Field(gt=0, lt=1)] | None = None
    costs: Annotated[Text | None, Option(metavar="CSV")] = None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    prior: Annotated[
        dict[str, Annotated[float, Field(gt=0, lt=1)]] | None,
        BeforeValidator(_shares_from_texts),
        Option(metavar="CLASS=SHARE", type=list[str] | None),
    ] = None
    prior_from: Annotated[Text | None, Option(metavar="PATH")] = None
    patient_rule: PatientRule = "mean"
    cascade: bool = False
    cascade_risk: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | Literal["auto"],
        BeforeValidator(_number_or_auto),
        Option(metavar="RISK", type=str),
    ] = 0.002
    cascade_order: Annotated[tuple[Text, ...], Option(metavar="MEMBER")] = ()
    unlabelled: Annotated[Text | None, Option(metavar="PATH")] = None
    audit_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    no_outliers: bool = False
    outlier_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    draws: Draws = 1000
    seed: Seed = 0

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
        self._check_point()
        self._check_cascade()
        return self

    def _check_cascade(self) -> None:
        """Check that the options of the cascade agree with the others."""
        if not self.cascade:
            for name in ("cascade_risk", "cascade_order", "unlabelled"):
                if getattr(self, name) != FitSettings.model_fields[name].default:
                    raise ValueError(f"--{name.replace('_', '-')}: expected --cascade with it, got none. Add it")
            return
        if self.mode != "soft":
            reason = "counts votes, which are no confidence" if self.mode == "hard" else "needs all members for a vote"
            raise ValueError(f"--cascade: expected --mode soft, got {self.mode}, which {reason}. Choose --mode soft")
        if self.prior or self.prior_from:
            raise ValueError("--cascade: can't be combined with --prior, which makes promises void. Leave one out")
        if self.risk == "auto":
            raise ValueError("--risk: expected a number with --cascade, got auto. Promise a number")

    @property
    def estimated_risk(self) -> float:
        """Target error rate among validation predictions that skip review; the default for `auto`."""
        return 0.01 if self.risk == "auto" else self.risk

    @property
    def criterion(self) -> Criterion | None:
        """Criterion of the operating point; None if none is requested."""
        return next((name for name in CRITERIA if getattr(self, name) is not None), None)

    def _check_point(self) -> None:
        """Check that the options of the operating point agree."""
        given = [name for name in CRITERIA if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]}: can't be combined with --{given[1]}. Leave one of them out")
        if given and self.risk == "auto":
            raise ValueError(f"--risk: expected a number with --{given[0]}, got auto. Promise a number")
        if self.risk_by_class and self.risk in {0, 1}:
            raise ValueError(f"--risk: expected a number between 0 and 1 with --risk-by-class, got {self.risk:g}")
        if given and self.mode == "hard":
            raise ValueError(
                f"--{given[0]}: chooses a probability, and --mode hard has vote counts instead. Choose --mode soft or "
                f"stack"
            )
        if self.positive is not None and not given:
            names = ", ".join(f"--{name}" for name in CRITERIA)
            raise ValueError(f"--positive: expected one of {names} with it, got none. Add one")
        if given and given != ["costs"] and self.positive is None:
            raise ValueError(f"--{given[0]}: expected --positive with it, got none. Name the class to be found")
        if self.npv is not None and (self.prior or self.prior_from):
            raise ValueError(
                "--npv: can't be combined with --prior, under which the validation images have other frequencies. "
                "Choose --sensitivity"
            )


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
