"""Graphs run in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

# With a short switch interval, two first calls almost always overlap.
TWO_AT_ONCE = """
import sys, threading
from pathlib import Path
import numpy as np
from plurum.export.graphs.runtimes import openvino_runner

sys.setswitchinterval(1e-6)
runners = [openvino_runner(Path(sys.argv[1]), ["LOGITS"], 1) for _ in range(2)]
threads = [threading.Thread(target=run, args=(np.ones((1, 3), np.uint8),)) for run in runners]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_two_threads_may_be_the_first_to_ask_openvino(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["PIXELS"], ["LOGITS"], to=TensorProto.FLOAT)],
        "cast",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 3])],
        [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 3])],
    )
    path = tmp_path / "cast.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    for _ in range(3):
        subprocess.run([sys.executable, "-c", TWO_AT_ONCE, path], check=True, timeout=60)
