"""Whether a release that is loaded, and not yet public, may become so.

Three things are asked: did its export's gate pass (PyTorch against every artefact and the vote, on labelled images), is
every file the one that passed, and does the loaded release answer made-up images as its artefacts did when it was
exported.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from plurum.errors import RepositoryError
from plurum.listing import check_exported
from plurum.questions import made_up_images, read_recorded
from plurum.serving.triton.probe import NoAnswerError, Probe
from plurum.spec import Ensemble

__all__ = ["check_artefacts", "check_release", "rehearse"]


def check_release(repository: Path, public: Ensemble, ensemble: Ensemble) -> None:
    """Make sure that clients of the public ensemble can ask another one instead.

    Raises:
        RepositoryError: they can't, or the release's gate did not pass.
    """
    if ensemble.classes != public.classes:
        raise RepositoryError(
            f"its classes are {', '.join(ensemble.classes)}, those that are public {', '.join(public.classes)}; "
            "clients count on them: serve it with a server of its own"
        )
    sizes = [(one.image.height, one.image.width) for one in (ensemble, public)]
    if sizes[0] != sizes[1]:
        raise RepositoryError(
            f"it takes images of {sizes[0][0]} x {sizes[0][1]} pixels, clients send {sizes[1][0]} x {sizes[1][1]}; "
            "serve it with a server of its own"
        )
    check_artefacts(repository)


def check_artefacts(repository: Path) -> None:
    """Make sure that a repository's gate passed, and that its files are those that it was exported with.

    Raises:
        RepositoryError: it did not, they aren't, or nothing is known of it.
    """
    try:
        parities = json.loads((repository / "parity.json").read_bytes())["artefacts"]
        faults = [f"{one['subject']}: {fault}" for one in parities for fault in one.get("faults", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            f"its parity.json can't vouch for it ({error!r}); export it again with plurum export"
        ) from error
    if faults:
        raise RepositoryError(f"its gate did not pass: {'; '.join(faults)}")
    if not check_exported(repository):
        raise RepositoryError("its export.json lists no files; export it again with plurum export")


def rehearse(probe: Probe, repository: Path, ensemble: Ensemble, timeout_s: float) -> float:
    """Ask each of a release's ensembles about made-up images, and return the largest difference of a probability.

    Args:
        probe: Asks the loaded release.
        repository: The release.
        ensemble: Its contract.
        timeout_s: For each question.

    Raises:
        RepositoryError: it does not answer, or not as its artefacts did when it was exported.
    """
    recorded = read_recorded(repository)
    expected = np.array(recorded.probabilities)
    pixels = made_up_images(ensemble.image.height, ensemble.image.width)
    if expected.shape != (len(pixels), len(ensemble.classes)):
        raise RepositoryError(
            f"what its export was answered is of shape {expected.shape}, {(len(pixels), len(ensemble.classes))} is "
            "needed; export it again with plurum export"
        )
    largest = 0.0
    for chain in probe.chains:
        try:
            served = probe.probabilities(chain, pixels, timeout_s)
        except NoAnswerError as error:
            raise RepositoryError(f"it was asked before it became public: {error}") from error
        difference = float(np.abs(served - expected).max())
        # Not `difference > tolerance`: NaN never passes.
        if not difference <= recorded.tolerance:
            raise RepositoryError(
                f"{chain} answers otherwise than its artefacts did when it was exported: a probability differs by "
                f"{difference:.2g} (at most {recorded.tolerance:g})"
            )
        largest = max(largest, difference)
    return largest
