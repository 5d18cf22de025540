"""Plurum compared with other serving frameworks: `python -m plurum.benchmarks.peers --help`.

A folder for each framework holds a small application, written as its documentation recommends. It runs in a process and
a virtual environment of its own, with the same PyTorch, ONNX Runtime and NumPy as Plurum.
"""

__all__: list[str] = []
