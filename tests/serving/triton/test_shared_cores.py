"""Instances that share a server's cores: each in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plurum.serving.backends import cores
from plurum.serving.backends.cores import SharedCores

OTHER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("cores", sys.argv[1])
cores = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cores)
shared = cores.SharedCores(Path(sys.argv[2]))
for _ in sys.stdin:
    with shared.use() as is_alone:
        print(is_alone, flush=True)
        sys.stdin.readline()
    print("done", flush=True)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another instance; each line that it reads begins or ends a computation."""
    words = [sys.executable, "-c", OTHER, str(cores.__file__), str(tmp_path / "cores")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.kill()


def reply(other: subprocess.Popen[str]) -> str:
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("\n")
    return other.stdout.readline().strip()


def test_an_instance_is_alone_while_no_other_computes(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    shared = SharedCores(tmp_path / "cores", quiet_s=0)
    assert reply(other) == "True"
    with shared.use() as is_alone:
        assert not is_alone
    assert reply(other) == "done"
    with shared.use() as is_alone:
        assert is_alone
        assert reply(other) == "False"
        # The other began later: this one goes on as it began.
        assert is_alone
    shared.close()


def test_no_instance_is_alone_for_a_while_after_two_computed_at_once(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    shared, never = (SharedCores(tmp_path / "cores", quiet_s=seconds) for seconds in (0, 3600))
    # One after the other is no load.
    assert reply(other) == "True"
    assert reply(other) == "done"
    with never.use() as is_alone:
        assert is_alone
    assert reply(other) == "True"
    with shared.use() as is_alone:
        assert not is_alone
    assert reply(other) == "done"
    with never.use() as is_alone:
        assert not is_alone
    with shared.use() as is_alone:
        assert is_alone
    shared.close()
    never.close()


def test_a_file_from_before_the_machine_started_delays_nothing(tmp_path: Path) -> None:
    (tmp_path / "cores").write_bytes((2**62).to_bytes(8, "little"))
    shared = SharedCores(tmp_path / "cores", quiet_s=3600)
    with shared.use() as is_alone:
        assert is_alone
    shared.close()


def test_an_instance_that_is_killed_or_fails_holds_nothing(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    shared = SharedCores(tmp_path / "cores")
    assert reply(other) == "True"
    other.kill()
    other.wait()
    with pytest.raises(ZeroDivisionError), shared.use():
        _ = 1 / 0
    with shared.use() as is_alone:
        assert is_alone
    shared.close()
