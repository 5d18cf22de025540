"""The run: everyone is started, answers are compared, then turns are taken while the others stand still."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plurum.benchmarks.peers.answering import Job
from plurum.benchmarks.peers.asking import Door, Task, asked_elsewhere
from plurum.benchmarks.peers.catalogue import FORMS, Form, Peer
from plurum.benchmarks.peers.environment import environment_of
from plurum.benchmarks.peers.material import Material, steps_of
from plurum.benchmarks.peers.result import Contender, LeftOut, PeersResult, TurnOf
from plurum.benchmarks.peers.running import PeerServer, PlurumServer, Running, free_port
from plurum.benchmarks.tools.machine import machine, versions
from plurum.errors import PlurumError, ServerError
from plurum.serving import Server, ServerSettings, usable_cores

__all__ = ["TOLERANCE", "Plan", "disagreement", "measure_peers"]

_log = logging.getLogger(__name__)
# FP32 by two libraries; the images' own answers differ by more than this, or the run says so.
TOLERANCE = 1e-3

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        peers: Who beside Plurum.
        clients: Numbers of requests in flight.
        rounds: Turns of everyone at each of them.
        seconds: Length of a turn.
        tolerance: Largest difference of a probability of Plurum's from PyTorch's; peers compute in FP32 and are held to
            0.001.
    """

    peers: tuple[Peer, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: float
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class _Entry:
    """Someone who runs."""

    contender: Contender
    door: Door
    server: Running


def measure_peers(plan: Plan, material: Material, progress: Callable[[str], None]) -> PeersResult:
    """Return what came of the plan.

    Whoever can't be installed, started or trusted with the answer is named and left out, and so is who stops to
    answer in the middle: none of its turns counts.

    Raises:
        ServerError: Plurum's own server does not start or answers something else than PyTorch.
    """
    state = machine()
    with ExitStack() as stack:
        entries, left_out, spread = _enter(stack, plan, material, progress)
        turns: list[TurnOf] = []
        order = random.Random(0)  # noqa: S311 - an order, not a secret
        for turn in range(plan.rounds):
            for clients in plan.clients:
                # Another order each time: what else the machine does must not always hit the same one.
                for entry in order.sample(entries, len(entries)):
                    name = entry.contender.name
                    progress(f"round {turn + 1} of {plan.rounds}, {clients} clients: {entry.contender.title}")
                    try:
                        said = _told(entry, material, clients, plan.seconds)
                    except ServerError as error:
                        if entry.contender.ours:
                            raise
                        entries.remove(entry)
                        left_out.append(LeftOut(name=name, reason=f"stopped answering: {error}"))
                        continue
                    turns.append(TurnOf(name=name, clients=clients, round=turn + 1, **said))
    kept = tuple(entry.contender for entry in entries)
    return PeersResult(
        members=tuple(member.arch for member in material.ensemble.members),
        size=material.ensemble.image.height,
        image_bytes=round(sum(path.stat().st_size for path in material.images) / len(material.images)),
        spread=spread,
        seconds=plan.seconds,
        rounds=plan.rounds,
        tolerance=plan.tolerance,
        contenders=kept,
        left_out=tuple(left_out),
        turns=tuple(turn for turn in turns if turn.name in {one.name for one in kept}),
        accuracy={},
        machine=state,
        versions=versions(),
    )


def disagreement(given: Answers, expected: Answers, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of a probability.

    Args:
        given: What is compared.
        expected: PyTorch's.
        tolerance: Two classes that lie no further apart than twice this may change places.

    Raises:
        ServerError: an answer has other classes, or another label that is no near tie.
    """
    largest = 0.0
    for one, other in zip(given, expected, strict=True):
        if one["probabilities"].keys() != other["probabilities"].keys():
            raise ServerError(f"answers with the classes {list(one['probabilities'])}")
        gaps = [abs(share - other["probabilities"][name]) for name, share in one["probabilities"].items()]
        largest = max(largest, *gaps)
        lead = other["probabilities"][other["label"]] - other["probabilities"].get(one["label"], -np.inf)
        if lead > 2 * tolerance:
            raise ServerError(f"answers {one['label']!r} where PyTorch says {other['label']!r}")
    return largest


def _enter(
    stack: ExitStack, plan: Plan, material: Material, progress: Callable[[str], None]
) -> tuple[list[_Entry], list[LeftOut], float]:
    """Start everyone, compare the answers with PyTorch's, and leave all of them paused."""
    expected = _by_pytorch(material)
    spread = float(np.std([max(answer["probabilities"].values()) for answer in expected]))
    if spread < TOLERANCE:
        _log.warning("the members answer all images nearly alike (%.1e): equal answers mean little here", spread)
    left_out: list[LeftOut] = []
    progress("starting Plurum")
    settings = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
    ours = PlurumServer(stack.enter_context(Server(material.served, settings)))
    # Triton ends well only if it runs.
    stack.callback(ours.resume)
    offered = [form for form in FORMS if (material.served / form.door.path).is_dir()]
    named = [replace(form, setup=f"{steps_of(material.served, form.door.path)}; {form.setup}") for form in offered]
    entries = [_compared(_entry(form, {}, ours), material, expected, plan.tolerance) for form in named]
    ours.pause()
    for peer in plan.peers:
        try:
            progress(f"setting up {peer.title}")
            environment = environment_of(peer.requirements)
            progress(f"starting {peer.title}")
            with ExitStack() as own:
                server = own.enter_context(PeerServer(peer, environment, _job(peer, material)))
                entry = _entry(peer, environment.versions(peer.requirements), server)
                entries.append(_compared(entry, material, expected, TOLERANCE))
                server.pause()
                # Who is left out ends here, the others with the run.
                stack.push(own.pop_all())
        except PlurumError as error:
            left_out.append(LeftOut(name=peer.name, reason=str(error)))
    return entries, left_out, spread


def _job(peer: Peer, material: Material) -> Job:
    return Job(
        repository=str(material.graphs.resolve()),
        weights=str(material.weights.resolve()),
        port=free_port(),
        workers=usable_cores() * peer.workers_per_core,
        threads=1 if peer.one_thread else 0,
    )


def _by_pytorch(material: Material) -> Answers:
    from plurum.benchmarks.peers.answering import TorchMembers

    members = TorchMembers(Job(str(material.graphs), str(material.weights), port=0, workers=1, threads=0))
    return [members.answer(path.read_bytes()) for path in material.images]


def _entry(one: Peer | Form, installed: dict[str, str], server: Running) -> _Entry:
    contender = Contender(
        name=one.name,
        title=one.title,
        setup=one.setup,
        versions=installed,
        ours=isinstance(one, Form),
        difference=0.0,
    )
    return _Entry(contender, one.door, server)


def _compared(entry: _Entry, material: Material, expected: Answers, tolerance: float) -> _Entry:
    """Return the entry with how far its answers are from PyTorch's.

    Raises:
        ServerError: further than `tolerance`, or it does not answer.
    """
    difference = disagreement(_asked(entry, material, 0, 0.0), expected, tolerance)
    if difference > tolerance:
        raise ServerError(f"{entry.contender.title} answers otherwise than PyTorch, by up to {difference:.4f}")
    return replace(entry, contender=entry.contender.model_copy(update={"difference": difference}))


def _told(entry: _Entry, material: Material, clients: int, seconds: float) -> dict[str, Any]:
    entry.server.resume()
    try:
        said: dict[str, Any] = _asked(entry, material, clients, seconds)
        return said
    finally:
        entry.server.pause()


def _asked(entry: _Entry, material: Material, clients: int, seconds: float) -> Any:
    """Return what the load generator says; raises as `asked_elsewhere`."""
    return asked_elsewhere(
        Task(
            door=entry.door,
            address=entry.server.address(entry.door.kind),
            images=tuple(str(path.resolve()) for path in material.images),
            classes=material.ensemble.classes,
            image=material.ensemble.image,
            clients=clients,
            seconds=seconds,
        )
    )
