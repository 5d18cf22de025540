"""What a run's members answer to its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from plurum.errors import ContractError, DataError, needs_extra
from plurum.models import model_from_checkpoint
from plurum.run import Run, Split
from plurum.spec import Member
from plurum.training.data.unlabelled import pixels_of
from plurum.training.progress import shown
from plurum.training.statistics.scoring import logits_of
from plurum.voting import softmax

__all__ = ["file_answers", "member_answers"]

_S = TypeVar("_S", bound=Split)


def member_answers(run: Run, members: tuple[Member, ...], splits: Iterable[_S]) -> dict[_S, npt.NDArray[np.float64]]:
    """Return the members' probabilities, `[images, members, classes]`, by split; computed on the GPU if there is one.

    Raises:
        ContractError: a member is broken, has other classes or another image spec than the run's data, or answers
            with numbers that are none.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    contract, table, pixels = run.data(), run.table(), run.pixels()
    for member in members:
        if member.classes != contract.classes or member.image != contract.image:
            raise ContractError(f"member {member.name!r} has other classes or another image spec than the run's data")
    wanted = tuple(splits)
    for split in wanted:
        if not len(table.rows(split)):
            raise DataError(f"{run.path} has no {split} images; train on data that has some")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answers: dict[_S, list[npt.NDArray[np.float64]]] = {split: [] for split in wanted}
    with shown("asking members", len(members)) as progress:
        for member in members:
            model = model_from_checkpoint(member, run.checkpoint(member)).to(device)
            for split, parts in answers.items():
                probabilities = softmax(logits_of(model, pixels, table.rows(split), member.image))
                if not np.isfinite(probabilities).all():
                    raise ContractError(f"member {member.name!r} answers NaN to {split} images; train it again")
                parts.append(probabilities)
            progress(1, "")
    return {split: np.stack(parts, axis=1) for split, parts in answers.items()}


def file_answers(run: Run, members: Sequence[Member], files: Sequence[Path]) -> npt.NDArray[np.float64]:
    """Return the members' probabilities `[files, members, classes]` for images that are not the run's.

    Raises:
        ContractError: a member is broken, or answers with numbers that are none.
        DataError: a file can't be read.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [model_from_checkpoint(member, run.checkpoint(member)).to(device) for member in members]
    image = run.data().image
    parts = []
    with shown("asking members", len(files)) as progress:
        for pixels in pixels_of(files, image):
            rows = np.arange(len(pixels))
            parts.append(softmax(np.stack([logits_of(model, pixels, rows, image) for model in models], axis=1)))
            progress(len(pixels), "")
    answers = np.concatenate(parts)
    if not np.isfinite(answers).all():
        raise ContractError("a member answers NaN to unlabelled images; train it again")
    return answers
