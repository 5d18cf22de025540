from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
begin = time.process_time()
from plurum.client import EnsembleClient
taken_s = time.process_time() - begin
heavy = {"torch", "timm", "tritonclient", "grpc", "gevent", "pandas", "pyarrow", "matplotlib"} & set(sys.modules)
print(taken_s, *sorted(heavy))
"""

WITHOUT = """
import sys
sys.modules["tritonclient"] = None
from plurum.client import EnsembleClient
from plurum.errors import MissingExtraError
for protocol in ("grpc", "http"):
    try:
        EnsembleClient(protocol=protocol)
    except MissingExtraError as error:
        print(error)
"""


def output(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_import_is_fast_and_light() -> None:
    # Of the processor's time, and the best of five: others compute on this machine, too.
    answers = [output(SCRIPT).split() for _ in range(5)]
    assert all(heavy == [] for _, *heavy in answers)
    assert min(float(taken_s) for taken_s, *_ in answers) < 0.6


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_connected_client_imports_no_torch(protocol: str) -> None:
    script = f"""
import sys
from plurum.client import EnsembleClient
EnsembleClient(protocol={protocol!r}).close()
print(*sorted({{"torch", "timm", "tritonclient"}} & set(sys.modules)))
"""
    assert output(script).split() == ["tritonclient"]


def test_missing_tritonclient_names_the_extra() -> None:
    lines = output(WITHOUT).splitlines()
    assert len(lines) == 2
    assert all("'tritonclient" in line and "pip install 'plurum[client]'" in line for line in lines)
