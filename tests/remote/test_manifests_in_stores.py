"""Images in a store are learnt from, evaluated and classified as those of a folder are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plurum.client.bulk.listing import listing_from_names
from plurum.errors import DataError
from plurum.manifests import fetch_data
from plurum.training.data.sources import load_data
from plurum.training.data.unlabelled import find_unlabelled_images
from tests.cli.command_line import CommandLine
from tests.remote.s3_server import IMAGES, S3Server

pytest.importorskip("s3fs")


@pytest.mark.parametrize("name", ["tiles", "tiles.csv"])
def test_data_are_loaded_as_from_a_folder(name: str, s3: S3Server) -> None:
    data = load_data(f"s3://data/{name}")
    assert data.name == f"s3://data/{name}"
    assert (len(data), data.classes) == (IMAGES, ("CE", "LAA"))
    local = load_data(str(s3.folder / "data" / "tiles"))
    assert sorted(Path(one).name for one in data.table.sources) == sorted(Path(one).name for one in local.table.sources)
    assert np.bincount(data.table.labels).tolist() == np.bincount(local.table.labels).tolist()
    # A second training finds that the images are unchanged.
    assert load_data(f"s3://data/{name}").fingerprint == data.fingerprint


@pytest.mark.usefixtures("s3")
def test_a_manifest_in_a_folder_may_list_addresses(tmp_path: Path) -> None:
    lines = [f"s3://data/tiles/CE/ü {number}.png" for number in (0, 2, 99)]
    (tmp_path / "list.csv").write_text("\n".join(["path", *lines]), encoding="utf-8")
    assert fetch_data(str(tmp_path / "list.csv")) == str(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"line 4 names s3://data/tiles/CE/ü 99\.png"):
        find_unlabelled_images(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("\n".join(["path", *lines[:2]]), encoding="utf-8")
    assert [path.name for path in find_unlabelled_images(tmp_path / "list.csv")] == ["ü 0.png", "ü 2.png"]
    assert len(listing_from_names([tmp_path / "list.csv"])) == 2
    assert len(find_unlabelled_images("s3://data/tiles")) == IMAGES


@pytest.mark.parametrize("name", ["/etc/hostname", "../other/x.png", "tiles/../../x.png"])
def test_a_manifest_in_a_store_names_no_file_of_this_machine(name: str, s3: S3Server) -> None:
    (s3.folder / "own" / "list.csv").write_text(f"path,label\n{name},CE\n")
    with pytest.raises(DataError, match="expected addresses, or paths below the manifest's folder, got"):
        fetch_data("s3://own/list.csv")


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("command", ["train", "data", "predict"])
def test_wrong_credentials_are_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plurum: CommandLine
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    options = ["--arch", "resnet10t", "--out", tmp_path / "out"] if command == "train" else []
    assert "s3://data/tiles: access is denied (Forbidden)" in plurum.refused(command, "s3://data/tiles", *options)
    assert not (tmp_path / "out").exists()
