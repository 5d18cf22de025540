"""Hostile requests against all that listens, while honest clients go on: `python -m plurum.benchmarks.hostile`."""

__all__: list[str] = []
