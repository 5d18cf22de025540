"""Change the release of a fleet, server by server, while clients send requests through Envoy.

    python -m plurum.benchmarks.claims.releases.fleet REPO OTHER --times 10 --page docs/deploying.md

Two `plurum serve --releases`, each behind `plurum gateway`, and Envoy before them with the configuration of
`serving/deploy/fleet`. Clients send requests to `ensemble_pixels`, one after the other, always with the same images;
`plurum rollout OTHER --fleet` and `plurum rollout --back --fleet` take turns. Counted: responses by release, and failed
requests. A response that mixed two releases would belong to none. Not measured: TLS, a network, servers on machines of
their own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from plurum.benchmarks.claims.releases.rollouts import (
    ReleaseServer,
    ReleaseTally,
    expected_probabilities,
    release_clients,
)
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.envoy import envoy_before
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import PlurumProcess
from plurum.errors import ServerError
from plurum.export.repository.cards.markup import table_from_rows
from plurum.files import write_text
from plurum.spec import read_ensemble

__all__ = ["fleet"]

_IMAGES, _LONGEST_S = 4, 600.0


def fleet(
    repository: Annotated[Path, typer.Argument(help="Repository to serve first.")],
    other: Annotated[Path, typer.Argument(help="Repository to roll out and back.")],
    servers: Annotated[int, typer.Option(min=2, help="Number of servers.")] = 2,
    times: Annotated[int, typer.Option(min=1, help="Number of rollouts over the fleet.")] = 10,
    clients: command.Clients = 4,
    page: Page = None,
) -> None:
    """Roll out over a fleet: a table on standard error, one line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"fleet": ""})
    with command.measurement("fleet") as (say, state), tempfile.TemporaryDirectory(prefix="plurum_") as folder:
        figures = _measure((repository, other), Path(folder), servers, times, clients, say)
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in figures.items()]
    table = table_from_rows(("fleet", ""), rows)
    command.print_report(figures, state, table)
    if page is not None:
        write_text(page, page_with_tables(page, {"fleet": table}))


def _measure(
    repositories: tuple[Path, Path], place: Path, servers: int, times: int, clients: int, say: command.Say
) -> dict[str, Any]:
    """Return the figures of `times` rollouts, there and back."""
    image = read_ensemble(repositories[0] / "ensemble.json").image
    pixels = random_pixels(image.height, image.width, _IMAGES)
    say("predictions of each release")
    expected = expected_probabilities(*repositories, pixels)
    folders = [place / f"server-{number}" for number in range(servers)]
    hosts, took_s = place / "hosts.txt", list[float]()
    hosts.write_text("".join(f"{folder}\n" for folder in folders), encoding="utf-8")
    with ExitStack() as stack:
        say("servers")
        running = [stack.enter_context(ReleaseServer(folder, repositories[0])) for folder in folders]
        gateways = [stack.enter_context(PlurumProcess("gateway", "--triton", one.urls["grpc"])) for one in running]
        url = stack.enter_context(envoy_before([one.urls["http"] for one in gateways], place))
        tally = stack.enter_context(release_clients(url, pixels, expected, clients))
        for number in range(times):
            say(f"rollout {number + 1} of {times}")
            start_s = time.monotonic()
            _roll_out(hosts, *(("--back",) if number % 2 else (str(repositories[1]),)))
            took_s.append(time.monotonic() - start_s)
    return _figures(tally, took_s, servers, clients)


def _roll_out(hosts: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plurum", "rollout", *words, "--fleet", str(hosts), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LONGEST_S,
    )
    if done.returncode:
        raise ServerError(f"plurum rollout failed: {done.stderr[-500:]}")


def _figures(tally: ReleaseTally, took_s: list[float], servers: int, clients: int) -> dict[str, Any]:
    counts = {f"responses_of_the_{name}_release": tally.counts[name] for name in ("first", "second")}
    return {
        "servers": servers,
        "clients": clients,
        "rollouts": len(took_s),
        "median_rollout_s": round(statistics.median(took_s), 1),
        "longest_rollout_s": round(max(took_s), 1),
        **counts,
        "responses_of_none": tally.counts["mixed"],
        "failed_requests": len(tally.failures),
    }


if __name__ == "__main__":
    command.run_as_program(fleet)
