"""Plurum beside what people would use instead: `python -m plurum.benchmarks.peers --help`.

A folder for each framework holds the small application that its documentation would have one write. It runs in a
process and a virtual environment of its own, and finds there the same PyTorch, ONNX Runtime and NumPy as we use.
"""

__all__: list[str] = []
