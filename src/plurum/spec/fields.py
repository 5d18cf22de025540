"""Types of fields that schemas share, and JSON files of schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from plurum.errors import MetadataError, PlurumError
from plurum.files import write_text
from plurum.regular_files import read_regular

__all__ = [
    "Classes",
    "Coefficient",
    "Metadata",
    "Name",
    "Positive",
    "Scale",
    "Sha256",
    "Share",
    "Text",
    "name_from_file",
    "read_metadata",
    "write_metadata",
]

# A name becomes a folder, a Triton model and a metric label.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


def name_from_file(file: str) -> str:
    """Return a member's name from its file's: without suffix, with only the characters that a name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(file).name.rsplit(".", 1)[0]).lstrip("_.-")[:100] or "member"


def _moderate(value: float) -> float:
    # Wider than the range of any fit; beyond it, the vote would overflow to NaN.
    if value and not 1e-100 <= abs(value) <= 1e100:
        raise ValueError(f"expected an absolute value between 1e-100 and 1e100, got {value}")
    return value


Scale = Annotated[Positive, AfterValidator(_moderate)]
Coefficient = Annotated[FiniteFloat, AfterValidator(_moderate)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a class is named twice: {', '.join(names)}")
    return names


Classes = Annotated[tuple[Text, ...], Field(min_length=2), AfterValidator(_distinct)]


class Metadata(BaseModel):
    """Base class of schemas: instances are frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


_M = TypeVar("_M", bound=BaseModel)


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Write `metadata` to `path` as indented JSON, atomically."""
    write_text(path, metadata.model_dump_json(indent=2) + "\n")


def read_metadata(path: Path, kind: type[_M], what: str, error: type[PlurumError] = MetadataError, fix: str = "") -> _M:
    """Return the content of a JSON file as a `kind`.

    Args:
        path: The file.
        kind: Model of the content.
        what: Name of the content, for messages.
        error: Exception to raise.
        fix: Advice that ends the message.

    Raises:
        PlurumError: an `error`, because the file is missing, too large, or does not fit `kind`.
    """
    try:
        return kind.model_validate_json(read_regular(path))
    except OSError as fault:
        raise error(f"{path} can't be read: {fault.strerror}{fix}") from fault
    except ValidationError as fault:
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'file'}: {re.sub('^Value error, ', '', one['msg'])}"
            for one in fault.errors(include_url=False)
        )
        raise error(f"{path} is not {what} of version {_versions(kind)}: {faults}{fix}") from fault


def _versions(kind: type[BaseModel]) -> str:
    """Return the versions of a format that this program reads, in words."""
    field = kind.model_fields.get("version")
    return " or ".join(map(str, get_args(field.annotation) if field else ())) or "1"
