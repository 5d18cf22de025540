"""Measurements, each a program of its own: `python -m plurum.benchmarks.NAME --help`."""
