"""Images without labels, of patients that a run does not have: they certify how far a cascade differs from its vote."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plurum.errors import DataError
from plurum.files import atomic_folder
from plurum.run import Run, UnlabelledImages, number_patients
from plurum.spec import Member, OutlierRule
from plurum.training.data.unlabelled import find_patients, find_unlabelled_images, iterate_pixels
from plurum.training.fitting.votes import FittedVote, ValidationPredictions
from plurum.training.inference.predictions import predict_unlabelled

__all__ = ["keep_unlabelled", "predict_unlabelled_patients", "read_unlabelled"]


def read_unlabelled(run: Run, source: Path) -> UnlabelledImages:
    """Return the images of a folder, or of a CSV manifest with the column `path` and, if known, `patient`.

    Raises:
        DataError: an image can't be read, or is of a patient that the run has.
    """
    files = find_unlabelled_images(source)
    patients = find_patients(source, len(files))
    if known := sorted(set(run.table().patients).intersection(patients) - {""}):
        raise DataError(
            f"--unlabelled: expected patients that the run does not have, got {len(known):,} of its patients in "
            f"{source}, such as {known[0]}. Leave them out."
        )
    pixels = np.concatenate(list(iterate_pixels(files, run.data().image)))
    return UnlabelledImages(pixels, number_patients(patients))


def predict_unlabelled_patients(
    run: Run, members: Sequence[Member], vote: FittedVote, outliers: OutlierRule | None, images: UnlabelledImages
) -> ValidationPredictions:
    """Return the predictions of all members, whose labels are -1, as they are unknown.

    Args:
        run: Run of the members.
        members: Members of the run.
        vote: Vote of some of them.
        outliers: Outlier test of the vote; None tests none.
        images: Images to predict.
    """
    detectors: list[str | None] = [None] * len(members)
    for place, member in enumerate(vote.kept.tolist()):
        detectors[member] = None if outliers is None else outliers.detectors[place]
    found = predict_unlabelled(run, members, detectors, images.pixels)
    novelty = None if outliers is None else found.novelty[:, vote.kept]
    unknown = np.full(len(images.groups), -1)
    return ValidationPredictions(found.probabilities, unknown, images.groups, run.data().classes, novelty)


def keep_unlabelled(run: Run, images: UnlabelledImages | None) -> None:
    """Write the images into the run, from which export reads them again; None removes those of a former fit."""
    if images is None:
        shutil.rmtree(run.unlabelled_folder, ignore_errors=True)
        return
    with atomic_folder(run.unlabelled_folder) as folder:
        np.save(folder / "pixels.npy", images.pixels)
        np.save(folder / "groups.npy", images.groups)
