"""Run the commands of docs/dicom.md on DICOM files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from plurum.run import Run
from tests.docs.pages import Terminal, blocks, run_python
from tests.images.dicom_files import PATIENT_ID, PLANTED, STUDY_UID, dicom, identifying_values, pydicom

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
            data = dicom(
                values.astype(np.uint16),
                patient=f"{PATIENT_ID}{label}{number // 2}",
                BitsStored=12,
                StudyInstanceUID=f"{STUDY_UID}.{label}.{number // 2}",
                SOPInstanceUID=f"{PLANTED['SOPInstanceUID']}.{label}.{number}",
            )
            (tmp_path / "scans" / name / f"{number}.dcm").write_bytes(data)
    with (tmp_path / "cases.csv").open("w") as file:
        rows = [(path.relative_to(tmp_path), path.parent.name) for path in sorted(tmp_path.rglob("scans/*/*"))]
        csv.writer(file).writerows([("path", "label"), *rows])
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
    for path in [*scans.joinpath("runs").rglob("*"), *scans.glob("*.csv"), Path("answers.jsonl")]:
        assert path.is_dir() or identifying_values(path.read_bytes()) == [], path
    check_reports()
    check_probabilities(Run(Path("runs/windowed")))
    (script,) = blocks("dicom.md", "python")
    assert run_python(script, scans) == "cine.dcm#frame=1 True\n"


def check_reports() -> None:
    """Check that each file has a report, and each study one with the reports of its two files."""
    assert {"0.sr.dcm", "LAA_0.sr.dcm"} < {path.name for path in Path("reports").iterdir()}
    assert len(list(Path("reports").iterdir())) == 32
    assert len(list(Path("studies").glob("*.study.sr.dcm"))) == 16
    for path in Path("studies").iterdir():
        (study,) = pydicom.dcmread(path).CurrentRequestedProcedureEvidenceSequence
        assert len(study.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 2
    assert sorted(path.name for path in Path("maps").iterdir()) == ["0.map.dcm", "0.sr.dcm"]


def check_probabilities(run: Run) -> None:
    """Check that the served members give the probabilities of PyTorch."""
    import torch

    from plurum.images import open_image, resize_to_pixels, to_eight_bit
    from plurum.models import model_from_checkpoint, normalise

    ensemble = run.ensemble()
    (member,), spec = ensemble.members, ensemble.image
    model = model_from_checkpoint(member, run.checkpoint(member))
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 32
    for answer in answers:
        image = to_eight_bit(open_image(Path(answer["path"]).read_bytes(), window=spec.window))
        pixels = torch.from_numpy(resize_to_pixels(image, **spec.resizing).copy())
        with torch.inference_mode():
            (expected,) = model(normalise(pixels[None], spec)).softmax(dim=1).tolist()
        served = answer["member_probabilities"][member.name]
        assert list(served.values()) == pytest.approx(expected, abs=1e-4), answer["path"]
