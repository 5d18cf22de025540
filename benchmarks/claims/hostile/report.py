"""The result of a campaign: claims, tables for people, and an object for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from plurum.benchmarks.claims.hostile.attack import Attack, AttackTally, name_of
from plurum.benchmarks.claims.hostile.witness import HeldResources

__all__ = ["OUTAGE_S", "RSS_MIB", "Campaign"]

# Longest allowed outage of honest clients, by target. One request can end Triton at its own ports.
OUTAGE_S = {"gateway": 1.0, "gateway-tls": 1.0, "page": 1.0, "command": 1.0, "triton": 5.0}
# Highest allowed resident memory of a process, by its role; other processes have no bound.
RSS_MIB = {"plurum serve": 300, "plurum gateway": 700, "plurum gateway with TLS": 700, "plurum ui": 2048}


@dataclass
class Campaign:
    """Result of a campaign.

    Attributes:
        tallies: Counts of each attack.
        held: Resources that the attacked processes held.
        tracebacks: Number of tracebacks in the log of each process.
        ended: Number of processes that exited by themselves.
        restarts: Number of restarts of Triton.
        left: Leftovers after the end.
        took_s: Length of the campaign, seconds.
        skipped: Number of attacks that had no turn.
        slack: Factor on allowed outages, for a machine with other work.
    """

    tallies: dict[Attack, AttackTally] = field(default_factory=dict)
    held: HeldResources = field(default_factory=HeldResources)
    tracebacks: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    restarts: int = 0
    left: list[str] = field(default_factory=list)
    took_s: float = 0.0
    skipped: int = 0
    slack: float = 1.0

    def broken(self) -> list[str]:
        """Return one line for each claim that does not hold."""
        return [*self._responses(), *self._processes()]

    def summary(self) -> dict[str, Any]:
        """Return the figures for programs."""
        return {
            "kinds": len({attack.kind_name for attack in self.tallies}),
            "attacks": len(self.tallies),
            "skipped": self.skipped,
            "requests": sum(tally.sent for tally in self.tallies.values()),
            "honest_answers": sum(tally.answers for tally in self.tallies.values()),
            "wrong_answers": sum(tally.wrong for tally in self.tallies.values()),
            "outage_s": self._longest(),
            "peak_rss_mib": {name: round(size / 2**20, 1) for name, size in sorted(self.held.rss_bytes.items())},
            "peak_files": dict(sorted(self.held.files.items())),
            "peak_shared_memory_mib": round(self.held.shared_bytes / 2**20, 1),
            "peak_temporary_mib": round(self.held.temporary_bytes / 2**20, 1),
            "open_to_others": sorted(self.held.open_to_others),
            "tracebacks": self.tracebacks,
            "ended": self.ended,
            "restarts_of_triton": self.restarts,
            "left": self.left,
            "took_s": round(self.took_s, 1),
            "broken_claims": self.broken(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one object per attack."""
        return [
            {
                "target": attack.target,
                "kind": attack.name,
                "sent": tally.sent,
                "outcomes": tally.classes(),
                "took_s": round(tally.took_s, 2),
                "outage_s": {name: round(seconds, 3) for name, seconds in sorted(tally.outage_s.items())},
                "wrong": tally.wrong,
                "unanswered": tally.unanswered,
                "reasons": dict(tally.reasons.most_common(3)),
            }
            for attack, tally in self.tallies.items()
        ]

    def tables(self) -> Iterable[Table]:
        """Give tables for people: attacks, then processes."""
        table = Table("target", "kind", "requests", "answered", "longest outage, s", title="Attacks")
        for attack, tally in self.tallies.items():
            came = ", ".join(f"{name} {count}" for name, count in tally.classes().items())
            bad = bool(_unexpected(attack, tally)) or tally.wrong
            outage = max(tally.outage_s.values(), default=0.0)
            mark = "[red]" if outage > OUTAGE_S[attack.target] * self.slack else ""
            name = f"[red]{attack.name}" if bad else attack.name
            table.add_row(attack.target, name, f"{tally.sent:,}", came, f"{mark}{outage:.2f}")
        yield table
        table = Table("process", "peak RSS, MiB", "most files", title="Processes")
        for name, size in sorted(self.held.rss_bytes.items()):
            table.add_row(name, f"{size / 2**20:.0f}", str(self.held.files.get(name, 0)))
        yield table

    def _longest(self) -> dict[str, dict[str, float]]:
        longest: dict[str, dict[str, float]] = {}
        for attack, tally in self.tallies.items():
            row = longest.setdefault(attack.target, {})
            for client, seconds in tally.outage_s.items():
                row[client] = max(row.get(client, 0.0), round(seconds, 3))
        return longest

    def _responses(self) -> Iterable[str]:
        for attack, tally in self.tallies.items():
            if tally.wrong:
                yield f"{attack.target}, {attack.name}: {tally.wrong} wrong responses to honest clients"
            if tally.unanswered:
                yield f"{attack.target}, {attack.name}: {tally.unanswered} honest commands without a response"
            if odd := _unexpected(attack, tally):
                yield f"{attack.target}, {attack.name}: unexpected outcomes {odd}"
            for client, seconds in tally.outage_s.items():
                if seconds > OUTAGE_S[attack.target] * self.slack:
                    yield f"{attack.target}, {attack.name}: {client} was out for {seconds:.2f} s"

    def _processes(self) -> Iterable[str]:
        for name, most in RSS_MIB.items():
            if (mib := self.held.rss_bytes.get(name, 0) / 2**20) > most:
                yield f"{name}: {mib:.0f} MiB resident, expected at most {most}"
        for name, count in self.tracebacks.items():
            if count:
                yield f"{name}: {count} tracebacks in its log"
        if self.ended:
            yield f"{self.ended} processes exited by themselves"
        if self.left:
            yield f"left after the end: {', '.join(self.left)}"
        if self.held.open_to_others:
            yield f"another user can read: {', '.join(sorted(self.held.open_to_others)[:5])}"


def _unexpected(attack: Attack, tally: AttackTally) -> dict[int, int]:
    return {one: count for one, count in tally.outcomes.items() if name_of(one) not in attack.kind.may}
