"""Carry out attacks, one kind at a time."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from plurum.benchmarks.claims.hostile.attack import ANY, Attack, Attacker, AttackTally, Kind, Surroundings
from plurum.benchmarks.claims.hostile.command_attacks import COMMANDS, plurum
from plurum.benchmarks.claims.hostile.grpc_attacks import GRPC
from plurum.benchmarks.claims.hostile.page_attacks import KEYS, PAGE
from plurum.benchmarks.claims.hostile.services import Services
from plurum.benchmarks.claims.hostile.tensor_attacks import MANAGEMENT, TENSORS
from plurum.benchmarks.claims.hostile.upload_attacks import FORMS, IMAGES
from plurum.benchmarks.claims.hostile.wire_attacks import WIRE
from plurum.benchmarks.claims.hostile.witness import Witness
from plurum.errors import ServerError

__all__ = ["TARGETS", "CampaignPlan", "HonestCommand", "attacks", "carry_out", "one_of_each"]

TARGETS = ("gateway", "gateway-tls", "triton", "page", "command")
_PATHS = {"gateway": "/predict", "gateway-tls": "/predict", "http": "/v2/models/ensemble/infer", "page": "/answers"}
_HEALTHY_S, _TOLERANCE = 60.0, 1e-4


@dataclass(frozen=True)
class CampaignPlan:
    """Plan of a campaign.

    Attributes:
        requests: Requests of each kind, divided by its cost.
        deadly: Requests of a kind that can end Triton, at Triton's own ports.
        seconds: Longest time for one kind.
        threads: Number of threads that send at once.
        seed: Seed of all random choices.
    """

    requests: int
    deadly: int
    seconds: float
    threads: int
    seed: int


class HonestCommand:
    """Runs `plurum predict` on an honest image, and knows the correct response.

    Args:
        surroundings: Served repository and its ports.

    Raises:
        ServerError: There is no response.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._known = surroundings
        (surroundings.folder / "honest.jpg").write_bytes(surroundings.images[0])
        self._expected = self._probabilities()
        if not self._expected:
            raise ServerError("plurum predict fails before anything is attacked")

    def is_right(self) -> bool | None:
        """Return True if the response is still the same; None if there is none."""
        found = self._probabilities()
        if not found:
            return None
        return found.keys() == self._expected.keys() and all(
            abs(found[name] - self._expected[name]) < _TOLERANCE for name in found
        )

    def _probabilities(self) -> dict[str, float]:
        known = self._known
        words = ("predict", "honest.jpg", "--json", "--url", f"127.0.0.1:{known.places['grpc'].port}")
        outcome, said = plurum(*words, folder=known.folder, temporary=known.temporary)
        return json.loads(said)["probabilities"] if outcome == 200 else {}


def attacks() -> list[Attack]:
    """Return every kind at every target."""
    found = []
    for target in ("gateway", "gateway-tls", "page"):
        tensors = {} if target == "page" else TENSORS | FORMS
        special = {"gateway": {}, "gateway-tls": KEYS, "page": PAGE}[target]
        kinds = WIRE | MANAGEMENT | tensors | IMAGES | special
        found += [Attack(target, name, target, kind) for name, kind in kinds.items()]
    found += [Attack("triton", name, "http", _allow_any(kind)) for name, kind in (WIRE | TENSORS | IMAGES).items()]
    found += [Attack("triton", name, "http", kind) for name, kind in MANAGEMENT.items()]
    found += [Attack("triton", name, "grpc", kind) for name, kind in GRPC.items()]
    for port in ("metrics", "status", "gateway-metrics"):
        target = "gateway" if port == "gateway-metrics" else "triton"
        named = {f"{name}, at the port of {port}": _allow_any(kind) for name, kind in WIRE.items()}
        found += [Attack(target, name, port, kind) for name, kind in named.items()]
    found += [Attack("command", name, "", kind) for name, kind in COMMANDS.items()]
    return found


def one_of_each(found: list[Attack]) -> list[Attack]:
    """Return one attack of each kind, the targets taking turns."""
    by_name: dict[str, list[Attack]] = {}
    for attack in found:
        by_name.setdefault(attack.kind_name, []).append(attack)
    return [ones[number % len(ones)] for number, ones in enumerate(by_name.values())]


def _allow_any(kind: Kind) -> Kind:
    """Return a kind for a server of others: any outcome is allowed, if the server keeps running."""
    return Kind(kind.make, kind.cost, ANY, kind.deadly)


def carry_out(
    attack: Attack,
    plan: CampaignPlan,
    surroundings: Surroundings,
    services: Services,
    witness: Witness,
    command: HonestCommand,
) -> AttackTally:
    """Send a kind of attack, start services again that it has ended, and wait until honest clients get responses."""
    kind, tally, start = attack.kind, AttackTally(), time.monotonic()
    if attack.target == "triton" and kind.deadly:
        # One after the other, each when the server is healthy.
        for turn in range(min(plan.deadly, plan.requests)):
            tally.outcomes += _send(attack, 1, 1, plan, turn, surroundings)
            services.revive()
            _wait_healthy(services)
            tally.add(witness.take(time.monotonic()))
    else:
        count = max(plan.requests // kind.cost, 1)
        tally.outcomes += _send(attack, count, 2 if kind.cost > 1 else plan.threads, plan, 0, surroundings)
        services.revive()
        if attack.target == "command":
            tally.add_command(command.is_right())
    tally.took_s = time.monotonic() - start
    tally.add(witness.take(time.monotonic()))
    return tally


def _send(
    attack: Attack, count: int, threads: int, plan: CampaignPlan, turn: int, surroundings: Surroundings
) -> Counter[int]:
    """Send at least `count` requests, and return their outcomes."""
    place = surroundings.places.get(attack.port, surroundings.places["gateway"])
    deadline, outcomes = time.monotonic() + plan.seconds, list[int]()

    def run(number: int) -> None:
        chance = random.Random(f"{plan.seed} {attack.target} {attack.name} {turn} {number}")  # noqa: S311 (not a secret)
        keyed = attack.target == "gateway-tls"
        attacker = Attacker(surroundings, place, _PATHS.get(attack.port, "/"), chance, keyed=keyed)
        while time.monotonic() < deadline and len(outcomes) < count:
            outcomes.extend(attack.kind.make(attacker))
        attacker.end()

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(run, range(threads)))
    return Counter(outcomes)


def _wait_healthy(services: Services) -> None:
    deadline = time.monotonic() + _HEALTHY_S
    url = f"http://127.0.0.1:{services.places['status'].port}/v2/health/ready"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
