"""Run the commands of docs/dicom.md on DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.run import Run
from tests.docs.pages import Terminal, blocks, run_python
from tests.images.dicom_files import PATIENT_ID, dicom

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]
# Changes of the commands, to take less time.
_QUICKER = {"--epochs 2": "--epochs 1", "export runs/windowed": "export runs/windowed --precision fp32"}


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder `scans` with bright and dark images of 8 patients each, and a file of two frames."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    draws = np.random.default_rng(0)
    for label, name in enumerate(("CE", "LAA")):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(16):
            values = draws.integers(0, 1000, (32, 32)) + 1024 * label
            data = dicom(values.astype(np.uint16), patient=f"{PATIENT_ID}{label}{number // 2}", BitsStored=12)
            (tmp_path / "scans" / name / f"{number}.dcm").write_bytes(data)
    (tmp_path / "cine.dcm").write_bytes(dicom(np.zeros((2, 32, 32), np.uint8)))
    return tmp_path


def test_the_commands_run(scans: Path, terminal: Terminal) -> None:
    for line in [line for block in blocks("dicom.md", "bash") for line in block.splitlines()]:
        terminal.run(line, _QUICKER)
    assert Run(Path("runs/windowed")).data().image.window == (40.0, 400.0)
    assert Run(Path("runs/scans")).data().image.window is None
    assert '"window"' not in Path("runs/scans/data/contract.json").read_text()
    patients = [set(Run(Path("runs", name)).table().patients) for name in ("scans", "windowed")]
    assert len(patients[0]) == 16
    assert patients[0] == patients[1]
    named = {line.split(",")[0] for line in Path("patients.csv").read_text().splitlines()[1:]}
    assert named == patients[0]
    assert {path.stat().st_mode & 0o777 for path in (Path("clinic.key"), *scans.glob("config/*/*.key"))} == {0o600}
    for path in [*scans.joinpath("runs").rglob("*"), Path("answers.csv"), Path("patients.csv")]:
        assert path.is_dir() or PATIENT_ID.encode() not in path.read_bytes(), path
    (script,) = blocks("dicom.md", "python")
    assert run_python(script, scans) == "cine.dcm#frame=1 True\n"
