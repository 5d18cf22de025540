"""`plurum rollout`: replace the public release of a running server."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from plurum.errors import ServerError, SettingsError, needs_extra

if TYPE_CHECKING:
    from plurum.serving.releases.releases import Releases, ReleaseState, RolloutReport

__all__ = ["rollout"]

_POLL_S = 0.1
_RELEASES = Path("releases")


def rollout(
    repository: Annotated[
        str | None,
        typer.Argument(
            help="Model repository to make public: a folder, or an address such as s3://BUCKET/REPO.",
            metavar="REPO",
            show_default=False,
        ),
    ] = None,
    releases: Annotated[Path, typer.Option(help="Releases folder of a running `plurum serve --releases`.")] = _RELEASES,
    percent: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100, help="Trial: send this percentage of requests to REPO first.", show_default=False
        ),
    ] = None,
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow",
            help="Trial: send requests to REPO as well and only compare its responses (on Triton's /metrics).",
        ),
    ] = False,
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="File with a releases folder per line, FOLDER or HOST:FOLDER (SSH): change each of these servers, one "
            "after another.",
            show_default=False,
        ),
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="End a trial or, without one, roll back to the previous release.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the public release as one line of JSON.")] = False,
) -> None:
    """Replace the release of a running server without losing a request.

    Loads the new release beside the old one and checks it first. The export must have passed the parity gate, its
    files must be unchanged, and its predictions must match those computed here. Then the new release becomes public;
    the old one stays loaded for a rollback. With --percent or --shadow, the new release is on trial
    first; if it fails, the public release responds. Without REPO and --back, prints the public release.

    With --fleet, each server must be able to read REPO under the same path or address. The first server that refuses
    ends the rollout, and the servers changed before it go back.

    [bold]Examples[/bold]

      plurum rollout runs/new/model_repository --releases live

      plurum rollout runs/new/model_repository --releases live --percent 5   # then without, or --back

      plurum rollout --back --releases live

      plurum rollout --releases live --json

      plurum rollout /models/new --fleet hosts.txt
    """
    with needs_extra("serving"):
        from plurum.repository.fetching import local_repository
        from plurum.serving.releases.releases import Releases, RolloutOrder
    if repository is not None and back:
        raise SettingsError("REPO, --back: expected one of them, got both")
    if ((percent is not None or shadow) and repository is None) or (percent is not None and shadow):
        raise SettingsError("--percent, --shadow: expected one of them, together with REPO")
    if fleet is not None and releases != _RELEASES:
        raise SettingsError("--fleet, --releases: expected one of them, got both. Leave out --releases.")
    console = Console(stderr=True, highlight=False)
    if fleet is not None:
        options = ["--shadow"] if shadow else [] if percent is None else ["--percent", f"{percent:g}"]
        _print_fleet(_change_fleet(fleet, repository, options, console, back=back), as_json=as_json)
        return
    folder = Releases(releases)
    if folder.state() is None:
        raise SettingsError(
            f"--releases: {releases} has no releases. Start a server: plurum serve REPO --releases {releases}."
        )
    if repository is not None or back:
        if not folder.is_served():
            raise ServerError(
                f"--releases: no running server uses {releases}. Start one: plurum serve --releases {releases}."
            )
        order = RolloutOrder(
            number=time.time_ns(),
            release=None if repository is None else folder.add(local_repository(repository)),
            percent=percent,
            shadow=shadow,
        )
        folder.place_order(order)
        report = _follow(folder, order.number, console)
        if report.outcome == "refused":
            raise ServerError(f"{report.lines[-1].rstrip('.')}. The public release is unchanged.")
    state = folder.state()
    if state is not None:
        sys.stdout.write(
            json.dumps(state.model_dump(mode="json")) + "\n"
            if as_json
            else f"public    {state.current}\nprevious  {state.previous or 'none'}\n"
            f"on trial  {state.trial.release if state.trial else 'none'}\n"
        )


def _change_fleet(
    file: Path, repository: str | None, options: list[str], console: Console, *, back: bool
) -> dict[str, ReleaseState]:
    """Roll out or back on the servers of a fleet, if asked to, and return each server's releases, by its name."""
    from plurum.repository.fetching import absolute_name, local_repository
    from plurum.serving.releases.fleet import Fleet, read_fleet
    from plurum.serving.releases.releases import tag_of

    fleet = Fleet(read_fleet(file), lambda line: console.print(line, markup=False, soft_wrap=True))
    if repository is not None:
        fleet.roll_out(tag_of(local_repository(repository)), absolute_name(repository), *options)
    elif back:
        fleet.roll_back()
    return {str(server): state for server, state in fleet.states().items()}


def _print_fleet(states: dict[str, ReleaseState], *, as_json: bool) -> None:
    if as_json:
        found = {name: state.model_dump(mode="json") for name, state in states.items()}
        sys.stdout.write(json.dumps({"servers": found}) + "\n")
        return
    for name, state in states.items():
        trial = state.trial.release if state.trial else "none"
        sys.stdout.write(f"{name}  public {state.current}  previous {state.previous or 'none'}  on trial {trial}\n")


def _follow(releases: Releases, number: int, console: Console) -> RolloutReport:
    """Print the steps of the rollout as they happen, and return the final report."""
    printed = 0
    with console.status("waiting for the server"):
        while True:
            report = releases.read_report()
            if report is not None and report.number == number:
                for line in report.lines[printed : None if report.outcome is None else -1]:
                    console.print(line, soft_wrap=True)
                    printed += 1
                if report.outcome is not None:
                    return report
            if not releases.is_served():
                raise ServerError(f"the server that uses {releases.folder} has exited")
            time.sleep(_POLL_S)
