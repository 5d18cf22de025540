"""Change what a live server serves, there and back, while clients send requests.

    python -m plurum.benchmarks.claims.releases.rollouts REPO OTHER --times 20

`plurum serve --releases` serves REPO. Clients send requests to `ensemble_pixels` over HTTP, one after the other, always
with the same images; `plurum rollout OTHER` and `plurum rollout --back` take turns. Counted: responses by release, and
failed requests. A response belongs to a release if the vote and every member's probabilities are those of that release,
so a response that mixed two releases would belong to none. Not measured: many different releases, a machine whose
memory does not hold both.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.background import background_clients, request_probabilities
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import PlurumProcess, server_of
from plurum.errors import ServerError, SettingsError
from plurum.spec import read_ensemble

__all__ = ["ReleaseServer", "ReleaseTally", "expected_probabilities", "probabilities_of", "release_clients", "rollouts"]

_IMAGES, _TOLERANCE, _DEADLINE_S = 4, 1e-5, 60.0


class ReleaseServer(PlurumProcess):
    """`plurum serve --releases` in a process of its own, and `plurum rollout` beside it.

    Args:
        folder: Folder of the releases.
        repository: Repository to serve first; None if the folder records the public release.
    """

    def __init__(self, folder: Path, repository: Path | None) -> None:
        self._folder = folder
        super().__init__("serve", *([repository] if repository else []), "--releases", folder)

    def __enter__(self) -> ReleaseServer:
        return self

    def rollout(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `plurum rollout` with these arguments."""
        words = [sys.executable, "-m", "plurum", "rollout", *map(str, arguments), "--releases", str(self._folder)]
        return subprocess.run([*words, "--json"], capture_output=True, text=True, check=False, timeout=300)


@dataclass
class ReleaseTally:
    """Outcomes of requests.

    Attributes:
        counts: Number of responses by release; `mixed` counts those that belong to none.
        failures: Errors of failed requests.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def release_clients(
    url: str,
    pixels: npt.NDArray[np.uint8],
    expected: dict[str, npt.NDArray[np.float32]],
    clients: int = 4,
    pause_s: float = 0.0,
) -> Iterator[ReleaseTally]:
    """Let clients send the same images continuously and tell releases apart while a `with` block lasts.

    Args:
        url: URL of the server.
        pixels: Images, uint8 `[images, height, width, 3]`, sent at random.
        expected: Probabilities of these images by release; see `probabilities_of`.
        clients: Number of clients.
        pause_s: Pause of a client between a response and its next request, seconds.
    """
    tally, lock = ReleaseTally(), threading.Lock()

    def send() -> None:
        number = random.randrange(len(pixels))  # noqa: S311 (a choice of images, not a secret)
        try:
            found = request_probabilities(url, pixels[number], _DEADLINE_S)
        except Exception as error:  # errors of geventhttpclient have no class in common
            tally.failures.append(repr(error))
            return
        names = [name for name, of in expected.items() if np.abs(of[number] - found).max() <= _TOLERANCE]
        with lock:
            tally.counts[names[0] if len(names) == 1 else "mixed"] += 1
        time.sleep(pause_s)

    with background_clients(send, clients):
        yield tally


def probabilities_of(repository: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the probabilities that a server of this repository alone gives, `[images, 1 + members, classes]`."""
    with server_of(repository) as server:
        return np.stack([request_probabilities(server.urls.http, image, _DEADLINE_S) for image in pixels])


def expected_probabilities(
    repository: Path, other: Path, pixels: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the probabilities of both releases as `probabilities_of` does, by the names `first` and `second`.

    Raises:
        SettingsError: They are equal for an image, so no response would tell the releases apart; or their numbers of
            members or classes differ.
    """
    expected = {"first": probabilities_of(repository, pixels), "second": probabilities_of(other, pixels)}
    if expected["first"].shape != expected["second"].shape:
        raise SettingsError(f"OTHER: expected as many members and classes as {repository} has, got others.")
    if np.abs(expected["first"] - expected["second"]).max(axis=(1, 2)).min() <= 2 * _TOLERANCE:
        raise SettingsError(
            f"OTHER: expected other predictions than those of {repository}, got the same. Name another."
        )
    return expected


def rollouts(
    repository: Annotated[Path, typer.Argument(help="Repository to serve first.")],
    other: Annotated[Path, typer.Argument(help="Repository to roll out and back.")],
    times: Annotated[int, typer.Option(min=1, help="Number of rollouts in each direction.")] = 20,
    clients: command.Clients = 4,
) -> None:
    """Roll out and back: a table on standard error, one line of JSON on standard output."""
    image = read_ensemble(repository / "ensemble.json").image
    pixels = random_pixels(image.height, image.width, _IMAGES)
    with command.measurement("predictions of each release") as (say, state), tempfile.TemporaryDirectory() as folder:
        expected = expected_probabilities(repository, other, pixels)
        took = []
        with (
            ReleaseServer(Path(folder) / "releases", repository) as server,
            release_clients(server.urls["http"], pixels, expected, clients) as tally,
        ):
            for number in range(times):
                say(f"there and back {number + 1} of {times}")
                for arguments in ((other,), ("--back",)):
                    start = time.monotonic()
                    done = server.rollout(*arguments)
                    if done.returncode:
                        raise ServerError(f"plurum rollout failed: {done.stderr}")
                    took.append(time.monotonic() - start)
    table = Table("rollouts", "longest, s", *(f"from the {name}" for name in expected), "from none", "failed")
    counts = [tally.counts[name] for name in (*expected, "mixed")]
    table.add_row(str(len(took)), f"{max(took):.1f}", *map(str, counts), str(len(tally.failures)))
    report = {"rollouts_s": took, "answers": tally.counts, "failures": tally.failures, "clients": clients}
    command.print_report(report, state, table)


if __name__ == "__main__":
    command.run_as_program(rollouts)
