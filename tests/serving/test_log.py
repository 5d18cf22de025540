"""Logs of Tritons that failed do not fill the temporary folder."""

from __future__ import annotations

from pathlib import Path

from plurum.serving.log import TritonLog


def test_the_log_of_the_last_failure_alone_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        log = TritonLog(tmp_path / f"{number}.log")
        log.create().close()
        log.keep()
        log.keep()
    assert [path.name for path in tmp_path.iterdir()] == ["2.log"]
