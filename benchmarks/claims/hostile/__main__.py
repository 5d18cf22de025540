"""Send hostile requests to everything that listens, while honest clients continue.

    python -m plurum.benchmarks.claims.hostile

Starts `plurum serve`, a gateway with TLS and keys and one without, and `plurum ui`, on 127.0.0.1. Sends kind after kind
of hostile requests to each of them, to Triton's own ports and to the command line, and nowhere else. Meanwhile five
honest clients send known images at a steady pace, each over a connection of its own, from another process.

Claimed, with exit code 1 otherwise: honest clients never get a wrong response. They wait at most 1 s for a correct one
while gateway, page or command line are attacked, and at most 5 s while Triton's own ports are, where one request can
end it. No request gets status 500 and none leaves a traceback; memory stays within bounds; nothing is left after the
end. Not measured: a network, several machines, days.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plurum.benchmarks.claims.hostile.attack import Attack, Surroundings
from plurum.benchmarks.claims.hostile.campaign import (
    TARGETS,
    CampaignPlan,
    HonestCommand,
    attacks,
    carry_out,
    one_of_each,
)
from plurum.benchmarks.claims.hostile.report import Campaign
from plurum.benchmarks.claims.hostile.services import Services
from plurum.benchmarks.claims.hostile.witness import Witness
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.errors import SettingsError
from plurum.files import write_text
from plurum.serving.triton.metrics import metrics_at
from plurum.spec import read_ensemble

_SIZE, _IMAGES, _CLASSES = 64, 8, 5
_QUICK_REQUESTS, _QUICK_SECONDS = 25, 2.0
_HOLD_S = 5.0


def hostile(  # noqa: PLR0913, PLR0917 - one parameter per option
    work: command.WorkFolder = Path("runs/hostile"),
    repository: command.ServedRepository = None,
    target: Annotated[list[str], typer.Option(help=f"Only this one of {', '.join(TARGETS)}; repeat for more.")] = [],  # noqa: B006
    kind: Annotated[list[str], typer.Option(help="Only kinds whose name contains this; repeat for more.")] = [],  # noqa: B006
    requests: Annotated[int, typer.Option(min=1, help="Requests of each kind; costly kinds send a fraction.")] = 600,
    deadly: Annotated[int, typer.Option(min=1, help="Requests of each kind that can end Triton, at its ports.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for a kind at a target, seconds.")] = 30.0,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Skip kinds without a turn after this time, minutes.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Number of connections that attack at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    slack: Annotated[
        float, typer.Option(min=1, help="Allow outages this many times as long, for a machine with other work.")
    ] = 1.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few requests of each kind at one target, in some minutes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write every attack and the summary as JSON.")] = None,
    list_kinds: Annotated[bool, typer.Option("--list", help="List the kinds, and attack nothing.")] = False,
) -> None:
    """Attack everything: tables on standard error, one line of JSON on standard output; exit code 1 for a broken claim.

    Ctrl-C ends everything that was started.

    [bold]Examples[/bold]

      python -m plurum.benchmarks.claims.hostile --quick

      python -m plurum.benchmarks.claims.hostile --target gateway --kind JPEG --requests 5000

      python -m plurum.benchmarks.claims.hostile --seed 1 --out hostile.json
    """
    chosen = _chosen(target, kind)
    if list_kinds:
        sys.stdout.writelines(f"{one.target}\t{one.name}\n" for one in chosen)
        return
    plan = CampaignPlan(requests, deadly, seconds, threads, seed)
    if quick:
        chosen = one_of_each(chosen)
        plan = CampaignPlan(_QUICK_REQUESTS, 1, _QUICK_SECONDS, threads, seed)
    console = Console(stderr=True)
    state = machine()
    with console.status("members") as status:
        say = status.update if console.is_terminal else _say
        served = repository or random_repository(work, command.TINY_ARCHS, _SIZE, 16, say, classes=_CLASSES)
        campaign = _attack(chosen, plan, served, minutes, say)
    campaign.slack = slack
    broken = [f"[red]broken:[/red] {line}" for line in campaign.broken()]
    summary = {**campaign.summary(), "plan": vars(plan), "slack": slack}
    report = command.print_report(summary, state, *campaign.tables(), *broken)
    if out is not None:
        write_text(out, json.dumps({**report, "rows": campaign.rows()}, indent=1) + "\n")
    if broken:
        raise typer.Exit(1)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _chosen(targets: list[str], kinds: list[str]) -> list[Attack]:
    """Return the attacks to carry out.

    Raises:
        SettingsError: No attack matches.
    """
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise SettingsError(f"--target: expected one of {', '.join(TARGETS)}, got {unknown[0]!r}.")
    named = [one for one in attacks() if not targets or one.target in targets]
    chosen = [one for one in named if not kinds or any(word in one.name for word in kinds)]
    if not chosen:
        raise SettingsError(f"--kind: expected a part of a kind's name, got {', '.join(kinds)}. See --list.")
    return chosen


def _attack(
    chosen: list[Attack], plan: CampaignPlan, repository: Path, minutes: float | None, say: Callable[[str], None]
) -> Campaign:
    image = read_ensemble(repository / "ensemble.json").image
    images = coloured_jpegs(image.height, image.width, _IMAGES)
    campaign, start = Campaign(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile_") as name:
        folder = Path(name)
        # Its temporary folder stands for /tmp, which others can enter.
        folder.chmod(0o755)
        (folder / "files").mkdir()
        with Services(repository, folder) as services:
            hold_s = min(plan.seconds, _HOLD_S)
            files = (repository, folder / "files", services.temporary)
            known = Surroundings(services.places, images, services.key, *files, services.header(), hold_s)
            with Witness(services.places, services.key, images, services.temporary) as witness:
                honest = HonestCommand(known)
                for number, attack in enumerate(chosen, 1):
                    if minutes is not None and time.monotonic() - start > 60 * minutes:
                        campaign.skipped = len(chosen) - number + 1
                        break
                    say(f"{number} of {len(chosen)}: {attack.target}, {attack.name}")
                    campaign.tallies[attack] = carry_out(attack, plan, known, services, witness, honest)
                campaign.held = witness.held
            status = f"http://127.0.0.1:{services.places['status'].port}/metrics"
            campaign.restarts = int(metrics_at(status).get("plurum_restarts_total{}", 0))
            campaign.ended = services.ended
        logs = ("serve", "gateway", "gateway-tls", "ui")
        campaign.tracebacks = {one: services.log(one).count("Traceback (most recent call last)") for one in logs}
        campaign.left = [f"plurum {name}, killed" for name in services.stuck]
        campaign.left += _left(services.temporary, campaign.held.shared_memory, folder)
    campaign.took_s = time.monotonic() - start
    return campaign


def _left(temporary: Path, shared: set[str], folder: Path) -> list[str]:
    """Return leftovers: temporary files, shared memory, and files that an attacker's code would have written."""
    # The log of the last Triton that failed is kept for people.
    logs = sorted(temporary.glob("plurum_*_triton.log"))[:1]
    # PyTorch creates a folder for its compiler whenever torchvision is imported.
    known = {*logs, *temporary.glob("torchinductor_*")}
    left = [str(path.relative_to(temporary)) for path in temporary.iterdir() if path not in known]
    left += [f"/dev/shm/{name}" for name in sorted(shared) if os.path.exists(f"/dev/shm/{name}")]  # noqa: S108, PTH110
    left += [f"{path.name} (an attacker's)" for path in (folder / "files").rglob("ran")]
    return left


if __name__ == "__main__":
    command.run_as_program(hostile)
