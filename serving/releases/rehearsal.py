"""Check that a release may become public.

A release must pass three checks. Its export's parity gate passed (PyTorch against every artefact and the vote, on
labelled images). Its files are those that passed. The loaded release predicts for synthetic images what its artefacts
predicted at export.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from plurum.errors import RepositoryError
from plurum.repository.listing import check_exported
from plurum.repository.probes import probe_images, read_recorded_probes
from plurum.serving.triton.probe import Probe, ProbeError
from plurum.spec import Ensemble

__all__ = ["check_artefacts", "check_release", "rehearse"]


def check_release(repository: Path, public: Ensemble, ensemble: Ensemble) -> None:
    """Check that a release can replace the public ensemble without a change in its clients.

    Raises:
        RepositoryError: its classes or image size differ, or its export's gate did not pass.
    """
    if ensemble.classes != public.classes:
        raise RepositoryError(
            f"classes: expected {', '.join(public.classes)}, as in the public release, got "
            f"{', '.join(ensemble.classes)}. Serve this release from a separate server."
        )
    sizes = [(one.image.height, one.image.width) for one in (ensemble, public)]
    if sizes[0] != sizes[1]:
        raise RepositoryError(
            f"image size: expected {sizes[1][0]} x {sizes[1][1]} pixels, as in the public release, got "
            f"{sizes[0][0]} x {sizes[0][1]}. Serve this release from a separate server."
        )
    check_artefacts(repository)


def check_artefacts(repository: Path) -> None:
    """Check that a repository passed its export's gate, and that its files are unchanged since.

    Raises:
        RepositoryError: the gate did not pass, a file has changed, or the export's records can't be read.
    """
    try:
        parities = json.loads((repository / "parity.json").read_bytes())["artefacts"]
        faults = [f"{one['subject']}: {fault}" for one in parities for fault in one.get("faults", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            f"parity.json: expected the result of the export's gate, got {error!r}. Export again with plurum export."
        ) from error
    if faults:
        raise RepositoryError(f"the export's gate did not pass: {'; '.join(faults)}")
    if not check_exported(repository):
        raise RepositoryError("export.json: expected a list of files, got none. Export again with plurum export.")


def rehearse(probe: Probe, repository: Path, ensemble: Ensemble, timeout_s: float) -> float:
    """Run synthetic images through each ensemble of a release, and return the largest difference of a probability.

    Args:
        probe: Probe of the loaded release.
        repository: Model repository of the release, which records the probabilities at export.
        ensemble: Metadata of the release.
        timeout_s: Time limit of each request, seconds.

    Raises:
        RepositoryError: an ensemble does not respond, or its probabilities differ from the recorded ones by more than
            the tolerance.
    """
    recorded = read_recorded_probes(repository)
    expected = np.array(recorded.probabilities)
    pixels = probe_images(ensemble.image.height, ensemble.image.width)
    if expected.shape != (len(pixels), len(ensemble.classes)):
        raise RepositoryError(
            f"recorded probabilities: expected shape {(len(pixels), len(ensemble.classes))}, got {expected.shape}. "
            "Export again with plurum export."
        )
    largest = 0.0
    for chain in probe.chains:
        try:
            served = probe.predict(chain, pixels, timeout_s)
        except ProbeError as error:
            raise RepositoryError(f"the rehearsal failed: {error}") from error
        difference = float(np.abs(served - expected).max())
        # Written as a negation so that NaN fails.
        if not difference <= recorded.tolerance:
            raise RepositoryError(
                f"{chain}: expected probabilities within {recorded.tolerance:g} of those at export, got a difference "
                f"of {difference:.2g}. Export again with plurum export."
            )
        largest = max(largest, difference)
    return largest
