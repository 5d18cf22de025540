"""Logs of Tritons that failed do not fill the temporary folder."""

from __future__ import annotations

from pathlib import Path

from plurum.serving.triton.log import TritonLog


def test_only_the_log_of_the_last_failure_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        log = TritonLog(tmp_path / f"{number}.log")
        log.create().close()
        log.keep()
        log.keep()
    assert [path.name for path in tmp_path.iterdir()] == ["2.log"]


def test_only_new_failures_to_load_a_model_are_found(tmp_path: Path) -> None:
    log = TritonLog(tmp_path / "triton.log")
    assert (log.size(), log.load_failure("voter", 0)) == (0, None)
    line = "E1129 14:00:00.1 7 model_lifecycle.cc:654] \"failed to load '{}' version 1: Internal: {}\"\n"
    log.path.write_text(line.format("voter", "too old"))
    since = log.size()
    with log.path.open("a") as file:
        file.write(line.format("voter-2", "other"))
        file.write(line.format("voter", r"no\n\nAt:\n file"))
    assert log.load_failure("voter", since) == "Internal: no"
    assert log.load_failure("voter", 0) == "Internal: too old"
    assert log.load_failure("vote", since) is None
