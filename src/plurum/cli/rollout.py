"""`plurum rollout`."""

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
    from plurum.serving.releases.releases import Releases, RolloutReport

__all__ = ["rollout"]

_POLL_S = 0.1


def rollout(
    repository: Annotated[
        Path | None,
        typer.Argument(help="The model repository that should become public.", metavar="REPO", show_default=False),
    ] = None,
    releases: Annotated[Path, typer.Option(help="The folder that `plurum serve --releases` serves from.")] = Path(
        "releases"
    ),
    percent: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="Try REPO on this share of the questions first.", show_default=False),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Ask REPO too, and only compare its answers (on Triton's /metrics).")
    ] = False,
    back: Annotated[
        bool, typer.Option("--back", help="End a trial, else make the release before public again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is public as one line of JSON.")] = False,
) -> None:
    """Change what a running server serves, without a question lost.

    The new release is loaded beside the old one and asked first: its export's gate must have passed, its files must be
    those that did, and it must answer as they do when they are computed here. Then the public ensemble becomes its.
    The old one stays loaded, to go back to. With --percent or --shadow the new one is on trial first: who asks never
    sees it fail. Without REPO and --back it says what is public.

    [bold]Examples[/bold]

      plurum rollout runs/new/model_repository --releases live

      plurum rollout runs/new/model_repository --releases live --percent 5   # then without, or --back

      plurum rollout --back --releases live

      plurum rollout --releases live --json
    """
    with needs_extra("serving"):
        from plurum.serving.releases.releases import Releases, RolloutOrder
    if repository is not None and back:
        raise SettingsError("name either a model repository or --back")
    if ((percent is not None or shadow) and repository is None) or (percent is not None and shadow):
        raise SettingsError("--percent or --shadow, one of them, is for a model repository to be tried")
    folder = Releases(releases)
    if folder.state() is None:
        raise SettingsError(f"{releases} holds no releases; plurum serve REPO --releases {releases} makes them")
    if repository is not None or back:
        if not folder.is_served():
            raise ServerError(f"nobody serves from {releases}; start plurum serve --releases {releases}")
        order = RolloutOrder(
            number=time.time_ns(),
            release=None if repository is None else folder.add(repository),
            percent=percent,
            shadow=shadow,
        )
        folder.place_order(order)
        report = _followed(folder, order.number, Console(stderr=True, highlight=False))
        if report.outcome == "refused":
            raise ServerError(f"{report.lines[-1].rstrip('.')}. The public release is unchanged.")
    state = folder.state()
    if state is not None:
        sys.stdout.write(
            json.dumps(state.model_dump(mode="json")) + "\n"
            if as_json
            else f"public    {state.current}\nbefore    {state.previous or 'none'}\n"
            f"on trial  {state.trial.release if state.trial else 'none'}\n"
        )


def _followed(releases: Releases, number: int, console: Console) -> RolloutReport:
    """Print what is done as it is done, and return the whole once that is all."""
    printed = 0
    with console.status("waiting for the server"):
        while True:
            report = releases.read_report()
            if report is not None and report.number == number:
                for line in report.lines[printed : None if report.outcome is None else -1]:
                    console.print(line)
                    printed += 1
                if report.outcome is not None:
                    return report
            if not releases.is_served():
                raise ServerError(f"the server that served from {releases.folder} has ended")
            time.sleep(_POLL_S)
