"""Settings of a search for the settings of a training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from plurum.settings.options import Option, Settings
from plurum.settings.training import TrainSettings

__all__ = ["AUGMENTATIONS", "FIXED_FIELDS", "SearchSettings"]

_PANEL = "Search"
AugmentationName = Literal["none", "shift", "colour", "elastic", "trivial", "mixup"]
# Training settings of each augmentation to try.
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"shift": 0.0},
    "shift": {"shift": 0.1},
    "colour": {"shift": 0.1, "jitter": 0.2, "gamma": 0.3},
    "elastic": {"shift": 0.1, "elastic": 0.05, "noise": 0.03},
    "trivial": {"shift": 0.1, "trivial_augment": True},
    "mixup": {"shift": 0.1, "mixup": 0.2},
}
_SEARCHED = {"learning_rate", "weight_decay", *(field for values in AUGMENTATIONS.values() for field in values)}
# Training settings that are the same in all trials; a trial trains one member.
FIXED_FIELDS = tuple(
    name for name in TrainSettings.model_fields if name not in _SEARCHED | {"seeds", "snapshots", "folds"}
)


def _parts_from_text(given: object) -> object:
    """Return the parts of a text that commas divide; pass other values on."""
    return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else given


def _range_from_text(given: object) -> object:
    """Return the two numbers that a comma divides; pass other values on."""
    if not isinstance(given, str):
        return given
    try:
        low, high = (float(part) for part in given.split(","))
    except ValueError:
        raise ValueError("expected LOW,HIGH, such as 1e-4,1e-2") from None
    return low, high


_Rate = Annotated[float, Field(gt=0, le=10)]
_Range = Annotated[
    tuple[_Rate, _Rate], BeforeValidator(_range_from_text), Option(panel=_PANEL, metavar="LOW,HIGH", type=str)
]


class SearchSettings(Settings):
    """Settings of a search.

    Attributes:
        trials: Number of trials, those of earlier runs of the command included.
        minutes: Budget of training in minutes, that of earlier runs of the command included. By default, no limit.
        learning_rates: Lowest and highest learning rate to try; drawn on a logarithmic scale.
        weight_decays: Lowest and highest weight decay to try; drawn on a logarithmic scale.
        augmentations: Augmentations to try, of none, shift, colour, elastic, trivial and mixup.
    """

    trials: Annotated[int, Field(ge=1, le=10_000), Option(panel=_PANEL)] = 30
    minutes: Annotated[float | None, Field(gt=0, allow_inf_nan=False), Option(panel=_PANEL)] = None
    learning_rates: _Range = (1e-4, 1e-2)
    weight_decays: _Range = (1e-3, 0.3)
    augmentations: Annotated[
        tuple[AugmentationName, ...],
        Field(min_length=1),
        BeforeValidator(_parts_from_text),
        Option(panel=_PANEL, metavar="NAME,NAME", type=str),
    ] = ("none", "shift", "colour")

    @model_validator(mode="after")
    def _values_are_distinct(self) -> SearchSettings:
        if len(set(self.augmentations)) < len(self.augmentations):
            raise ValueError(f"--augmentations: expected each name once, got {','.join(self.augmentations)}")
        for name, (low, high) in (("--learning-rates", self.learning_rates), ("--weight-decays", self.weight_decays)):
            if low > high:
                raise ValueError(f"{name}: expected LOW,HIGH, got {low:g},{high:g}. Exchange them")
        return self
