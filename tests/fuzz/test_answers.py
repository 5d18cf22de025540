"""Files of predictions, broken at random: read as samples that can be tested, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.settings.drift import DriftSettings
from plurum.training.drift.answers import Answers, read_answers
from plurum.training.drift.detect import compare_answers
from tests.fuzz.mutations import Fuzz, broken_bytes
from tests.training.drift.files import write_answers

QUICK = DriftSettings(permutations=100, alpha=0.05)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_of_predictions(tmp_path: Path, suffix: str) -> None:
    fuzz, path = Fuzz(f"predictions in {suffix}"), tmp_path / f"broken{suffix}"
    whole = write_answers(tmp_path / f"whole{suffix}").read_bytes()
    reference = read_answers([tmp_path / f"whole{suffix}"])
    for draw in fuzz.draws():
        content = broken_bytes(draw, whole)
        path.write_bytes(content)
        found: Answers | None = fuzz.fed(lambda: read_answers([path]), content)
        if found is not None:
            assert np.isfinite(found.probabilities).all(), f"{fuzz}: {content!r}"
            assert len(found.patients) == len(found.label) == len(found.disagreement), f"{fuzz}: {content!r}"
        # Whatever can be read can be tested, or has other classes.
        fuzz.fed(lambda: compare_answers(reference, read_answers([path]), QUICK), content)
