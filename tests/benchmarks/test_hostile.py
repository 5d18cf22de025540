"""A short hostile campaign, and its claims."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from plurum.benchmarks.claims.hostile.attack import AttackTally, name_of
from plurum.benchmarks.claims.hostile.campaign import attacks, one_of_each
from plurum.benchmarks.claims.hostile.grpc_attacks import is_answered, raw_call
from plurum.benchmarks.claims.hostile.honest import HonestRequest
from plurum.benchmarks.claims.hostile.images import claimed_jpeg, endless_jpeg
from plurum.benchmarks.claims.hostile.report import Campaign
from plurum.benchmarks.claims.hostile.wires import ServerPort
from plurum.benchmarks.claims.hostile.witness import HeldResources
from plurum.serving import Server
from tests.benchmarks.programs import run_benchmark

pytestmark = pytest.mark.timing


def test_there_are_more_than_sixty_kinds_and_each_has_a_turn_in_a_quick_run() -> None:
    kinds = {attack.kind_name for attack in attacks()}
    assert len(kinds) >= 60
    quick = one_of_each(attacks())
    assert {attack.kind_name for attack in quick} == kinds
    assert {attack.target for attack in quick} == {"gateway", "gateway-tls", "triton", "page", "command"}


@pytest.mark.parametrize(
    ("outcome", "name"), [(0, "closed"), (-1, "timeout"), (500, "500"), (503, "busy"), (501, "5xx"), (413, "4xx")]
)
def test_outcomes_have_classes(outcome: int, name: str) -> None:
    assert name_of(outcome) == name


def test_each_claim_can_fail() -> None:
    attack = next(one for one in attacks() if one.target == "gateway" and one.name == "deep JSON")
    tally = AttackTally(outcomes=Counter({400: 5}))
    campaign = Campaign(tallies={attack: tally})
    tally.add([HonestRequest("gateway", 1.0, 1.9, 0, is_right=True)])
    assert campaign.broken() == []
    tally.add([HonestRequest("gateway", 1.0, 2.1, 3, is_right=False, reason="OSError")])
    tally.add_command(None)
    tally.outcomes[500] += 1
    campaign.held = HeldResources(rss_bytes={"plurum gateway": 1 << 40}, open_to_others={"/dev/shm/x"})  # noqa: S108
    campaign.tracebacks, campaign.ended, campaign.left = {"ui": 2}, 1, [".ses"]
    broken = "\n".join(campaign.broken())
    for said in (
        "1 wrong responses",
        "1 honest commands without a response",
        "unexpected outcomes {500: 1}",
        "gateway was out for 1.10 s",
        "1048576 MiB resident",
        "ui: 2 tracebacks",
        "1 processes exited",
        "left after the end: .ses",
        "another user can read: /dev/shm/x",
    ):
        assert said in broken
    campaign.slack = 2.0
    assert "was out for" not in "\n".join(campaign.broken())


def test_images_cost_what_they_are_made_to_cost() -> None:
    assert len(claimed_jpeg()) < 1000
    assert endless_jpeg().count(b"\xff\xda") > 20_000
    assert len(endless_jpeg()) < 4 << 20


def test_unknown_targets_and_kinds_are_named() -> None:
    for words, said in ((("--target", "moon"), "--target: expected one of"), (("--kind", "moon"), "--kind: expected")):
        assert said in run_benchmark("claims.hostile", *words, code=2).stderr


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(1200)
def test_a_quick_campaign_breaks_no_claim(repository: Path) -> None:
    # Other tests and other users take the cores now and then: outages are measured by the long run. Commands take half
    # of its time; tests/cli and tests/fuzz attack each of them.
    targets = ("gateway", "gateway-tls", "triton", "page")
    chosen = [word for target in targets for word in ("--target", target)]
    options = ("--quick", "--repository", repository, "--slack", 10, *chosen)
    report = json.loads(run_benchmark("claims.hostile", *options, timeout_s=1100).stdout)
    assert report["broken_claims"] == []
    assert report["wrong_answers"] == 0
    assert report["honest_answers"] > 500
    assert report["kinds"] >= 60
    assert set(report["outage_s"]) == set(targets)


@pytest.mark.triton
def test_responses_to_raw_frames_are_distinguished_from_refusals(served: Server) -> None:
    place = ServerPort(int(served.urls.grpc.rpartition(":")[2]))
    assert is_answered(place, raw_call("ServerLive", b""))
    assert not is_answered(place, raw_call("RepositoryIndex", b""))
