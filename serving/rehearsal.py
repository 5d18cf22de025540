"""Whether a release that is loaded, and not yet public, may become so.

Three things are asked: did its export's gate pass (PyTorch against every artefact and the vote, on labelled images),
are its artefacts still the files that passed, and does the loaded release answer made-up images as those artefacts and
the contract's rule do when they are computed here. The images are noise of several coarsenesses: no patient's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import RepositoryError
from plurum.files import sha256_of
from plurum.serving.probe import NoAnswerError, Probe
from plurum.spec import INPUT_PIXELS, LOGITS, Ensemble
from plurum.voting import decide, rule_from_contract, softmax

__all__ = ["check_artefacts", "check_release", "rehearse"]

# Rows and columns of the noise, stretched to the image's size.
_GRAINS = (2, 5, 16, 64)
# How far a served probability may be from the same graph's computed here; OpenVINO rounds to BF16 in its own way.
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-3, 0.1


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
    """Make sure that a repository's gate passed, and that its artefacts are the files that passed it.

    Raises:
        RepositoryError: it did not, they aren't, or nothing is known of it.
    """
    try:
        parities = json.loads((repository / "parity.json").read_bytes())["artefacts"]
        artefacts = json.loads((repository / "export.json").read_bytes())["artefacts"]
        faults = [f"{one['subject']}: {fault}" for one in parities for fault in one.get("faults", ())]
        changed = [one["file"] for one in artefacts if sha256_of(repository / one["file"]) != one["sha256"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"its parity.json and export.json can't vouch for it ({error!r}); export it again with plurum export"
        ) from error
    if faults:
        raise RepositoryError(f"its gate did not pass: {'; '.join(faults)}")
    if changed:
        raise RepositoryError(f"{changed[0]} is not the file that passed the gate; export it again with plurum export")


def rehearse(probe: Probe, repository: Path, ensemble: Ensemble, timeout_s: float) -> float:
    """Ask each of a release's ensembles about made-up images, and return the largest difference of a probability.

    Args:
        probe: Asks the loaded release.
        repository: The release.
        ensemble: Its contract.
        timeout_s: For each question.

    Raises:
        RepositoryError: it does not answer, or not as its artefacts do.
    """
    pixels = _images(ensemble.image.height, ensemble.image.width)
    expected = _expected(repository, ensemble, pixels)
    rounded = any("openvino" in path.read_text(encoding="utf-8") for path in repository.glob("*/config.pbtxt"))
    tolerance = _ROUNDED_TOLERANCE if rounded else _TOLERANCE
    largest = 0.0
    for chain in probe.chains:
        try:
            served = probe.probabilities(chain, pixels, timeout_s)
        except NoAnswerError as error:
            raise RepositoryError(f"it was asked before it became public: {error}") from error
        difference = float(np.abs(served - (served if expected is None else expected)).max())
        # Not `difference > tolerance`: NaN never passes.
        if not (difference <= tolerance and np.allclose(served.sum(axis=1), 1, atol=1e-3)):
            raise RepositoryError(
                f"{chain} answers otherwise than its artefacts: a probability differs by {difference:.2g} (at most "
                f"{tolerance:g})"
            )
        largest = max(largest, difference)
    return largest


def _images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return noise from coarse to fine, uint8 `[images, height, width, 3]`, the same always."""
    random = np.random.default_rng(0)
    images = []
    for grain in _GRAINS:
        noise = random.integers(0, 256, (min(grain, height), min(grain, width), 3), dtype=np.uint8)
        rows, columns = (
            np.arange(size) * cells // size for size, cells in zip((height, width), noise.shape, strict=False)
        )
        images.append(noise[rows][:, columns])
    return np.stack(images)


def _expected(repository: Path, ensemble: Ensemble, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64] | None:
    """Return the vote's probabilities, or None where the artefacts are engines that only Triton can run."""
    graphs = [repository / member.name / "1" / "model.onnx" for member in ensemble.members]
    if not all(graph.is_file() for graph in graphs):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The cores belong to those who are being answered.
    options.intra_op_num_threads = 1
    logits: list[Any] = []
    for graph in graphs:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        logits.append(session.run([LOGITS], {INPUT_PIXELS: pixels})[0])
    rule = rule_from_contract(ensemble.model_dump(mode="json"))
    return decide(softmax(np.stack(logits, axis=1)), rule).probabilities
