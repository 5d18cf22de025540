"""Hostile requests while honest clients carry on: `python -m plurum.benchmarks.claims.hostile`."""
