"""What a server leaves behind is gone when it is said to be."""

from __future__ import annotations

import subprocess
import sys
import uuid

from plurum.serving.leftovers import end_processes, processes_of


def test_killed_processes_are_gone_afterwards() -> None:
    """They hold memory, which the kernel takes its time to take back."""
    name = f"plurum_{uuid.uuid4().hex}"
    script = "import time; held = bytearray(400_000_000); print('ready', flush=True); time.sleep(600)"
    words = [sys.executable, "-c", script, name]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert sorted(processes_of(name)) == sorted(process.pid for process in processes)
    end_processes(name)
    assert processes_of(name) == []
    for process in processes:
        process.communicate()
        assert process.returncode == -9
    end_processes(name)
