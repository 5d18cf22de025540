"""Settings of a student, which imitates the vote of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plurum.settings.options import Option, Settings, settings_from
from plurum.settings.training import Text, TrainSettings

__all__ = ["STUDENT_FIELDS", "DistillSettings"]

# Training settings that a student may have otherwise than its run; those about images are the run's.
STUDENT_FIELDS = (
    "seed",
    *("epochs", "batch_size", "accumulate", "learning_rate", "weight_decay", "warmup_share", "clip_norm"),
    *("ema", "patience"),
    *("shift", "flip", "rotate", "jitter", "gamma", "blur", "noise", "elastic", "erase", "trivial_augment"),
    *("mixup", "cutmix"),
    *("precision", "compile"),
)


class DistillSettings(Settings):
    """Settings of a student.

    Attributes:
        arch: Architecture of the student: a timm name, or a model of timm as hf-hub:OWNER/NAME or local-dir:FOLDER.
        pretrained: If True, start from timm's pretrained weights (downloads them). Inputs are normalised as in RUN.
        temperature: Temperature of the loss: above 1, the student imitates improbable classes more (Hinton, Vinyals &
            Dean, arXiv 1503.02531).
        label_weight: Weight of the labels in the loss, 0 to below 1; the rest is that of the vote. With 0, the student
            only imitates the vote, as it does on images without labels.
        unlabelled: Images without labels, on which the student imitates the vote too: a folder, or a .csv manifest with
            a column `path` and, if known, `patient`. Leave out patients of the run.
        no_comparison: If True, do not train the same architecture on labels alone for comparison.
        add: Name under which to add the student to RUN as a member too, so that it can be the first stage of a cascade.
    """

    arch: Annotated[Text, Option(metavar="ARCH")]
    pretrained: bool = False
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    label_weight: Annotated[float, Field(ge=0, lt=1)] = 0.5
    unlabelled: Annotated[Text | None, Option(metavar="PATH")] = None
    no_comparison: bool = False
    add: Annotated[Text | None, Option(metavar="NAME")] = None

    def student_settings(self, of_run: TrainSettings, given: dict[str, object]) -> TrainSettings:
        """Return the settings of the student's training.

        Args:
            of_run: Settings of the run's members.
            given: Training settings that differ from those; `STUDENT_FIELDS` lists the possible ones.
        """
        kept = {name: value for name, value in of_run.model_dump().items() if not _is_of_members(name)}
        # The vote is calibrated for classes as frequent as in the labels.
        fixed = {"archs": (self.arch,), "pretrained": self.pretrained, "balance": "none"}
        return settings_from(TrainSettings, **{"seed": of_run.seed, **kept, **fixed, **given})


def _is_of_members(name: str) -> bool:
    """Return True for a training setting that says which members there are; a student is a single one."""
    return Option.of(TrainSettings, name).panel == "Members"
