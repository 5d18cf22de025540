"""DICOM files in the client and on the page: frames, patients, and nothing that identifies one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.client import EnsembleClient, Prediction, listing_from_names
from plurum.client.connection.description import served_from_description
from plurum.client.connection.payload import prepare_image, without_patient
from plurum.client.ui.pictures import picture_from_image
from plurum.dicom_files import PatientNames
from plurum.errors import ImageError
from plurum.images import open_image
from plurum.serving import Server
from tests.client.ui.browser import page_at
from tests.images.dicom_files import PATIENT_ID, PATIENT_NAME, dicom
from tests.images.image_files import encoded, png_from_pixels

RLE = "1.2.840.10008.1.2.5"


def grey(side: int = 32, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def test_frames_and_patients_are_listed(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(dicom(grey()))
    (tmp_path / "two").write_bytes(dicom(np.stack([grey(), grey(seed=1)]), patient="other"))
    (tmp_path / "three.png").write_bytes(png_from_pixels(np.stack([grey()] * 3, axis=-1)))
    names = PatientNames(tmp_path / "key")
    listing = listing_from_names([tmp_path], patient_names=names)
    assert list(listing) == [f"{tmp_path}/{name}" for name in ("one.dcm", "three.png", "two#frame=0", "two#frame=1")]
    assert sorted(listing.patients) == [0, 2, 3]
    assert listing.patients[2] == listing.patients[3] == names.name(tmp_path / "two") != listing.patients[0]
    assert not listing_from_names([tmp_path]).patients


def test_nothing_that_identifies_a_patient_is_sent(tmp_path: Path) -> None:
    frames = np.stack([grey(), grey(seed=1)])
    (tmp_path / "two.dcm").write_bytes(dicom(frames))
    sent = prepare_image(0, f"{tmp_path}/two.dcm#frame=1", None).payload
    assert isinstance(sent, bytes)
    assert PATIENT_ID.encode() not in sent
    assert PATIENT_NAME.encode() not in sent
    np.testing.assert_array_equal(np.asarray(open_image(sent)), frames[1])
    for image in (f"{tmp_path}/two.dcm#frame=2", dicom(frames)):
        with pytest.raises(ImageError, match=r"NumberOfFrames \(0028,0008\)"):
            prepare_image(0, image, None)
    assert without_patient(b"other") == b"other"


@pytest.mark.triton
def test_served_predictions_equal_those_of_the_same_pixels(served: Server, tmp_path: Path) -> None:
    pixels = grey(64)
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    compressed = RLELosslessEncoder.encode(
        pixels, rows=64, columns=64, samples_per_pixel=1, bits_allocated=8, bits_stored=8, pixel_representation=0,
        number_of_frames=1, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    images = [encoded(Image.fromarray(pixels)), dicom(pixels), dicom(pixels, syntax=RLE, encoded=compressed)]
    with EnsembleClient(served.urls.grpc) as client:
        png, *others = client.predict(images)
        for prediction in others:
            assert isinstance(prediction, Prediction)
            assert prediction.probabilities == pytest.approx(png.probabilities, abs=1e-5)
        with pytest.raises(ImageError, match=r"PhotometricInterpretation \(0028,0004\)"):
            client.predict([dicom(pixels, PhotometricInterpretation="HSV")])
    path = tmp_path / "scan.dcm"
    path.write_bytes(images[2])
    command = [sys.executable, "-m", "plurum", "predict", str(path), "--url", served.urls.grpc, "--json"]
    outcome = subprocess.run(
        [*command, "--pseudonym-key-file", str(tmp_path / "key"), "--patients", str(tmp_path / "patients.csv")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for text in (outcome.stdout, outcome.stderr, (tmp_path / "patients.csv").read_text()):
        assert PATIENT_ID not in text
        assert PATIENT_NAME not in text


@pytest.mark.triton
def test_the_page_stores_nothing_that_identifies_a_patient(served: Server, tmp_path: Path) -> None:
    data, store = dicom(grey(64)), tmp_path / "reviews"
    sha256 = hashlib.sha256(without_patient(data)).hexdigest()
    with page_at("--url", served.urls.grpc, "--store", store, "--reviewer", "Ada") as url:
        for path, body in (("/answers", data), (f"/answers/{sha256}/review", b"")):
            request = urllib.request.Request(url + path, body, {"x-file-name": "scan.dcm", "x-stay": "1"})
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert PATIENT_ID not in reply.read().decode()
        with urllib.request.urlopen(f"{url}/pictures/{sha256}", timeout=60) as reply:
            assert reply.headers["content-type"] == "image/png"
    assert (store / "images" / f"{sha256}.dcm").read_bytes() == without_patient(data)
    for file in store.rglob("*"):
        assert file.is_dir() or PATIENT_ID.encode() not in file.read_bytes(), file


def test_the_page_shows_images_by_the_window_of_the_server() -> None:
    stored = grey().astype(np.uint16)
    with pytest.raises(ImageError, match="--window"):
        picture_from_image(dicom(stored))
    content, _ = picture_from_image(dicom(stored), (128.0, 256.0))
    assert np.asarray(Image.open(io.BytesIO(content))).max() == 255
    image = {"height": 32, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "window": [128.0, 256.0]}
    contract = json.dumps({"classes": ["CE", "LAA"], "members": [{"name": "one"}], "image": image})
    config = {"parameters": {"contract": {"string_value": contract}}}
    assert served_from_description(config, [], [], encoded=True).window == (128.0, 256.0)
