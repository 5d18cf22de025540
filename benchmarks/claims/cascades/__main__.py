"""Run the simulation: python -m plurum.benchmarks.claims.cascades."""

from __future__ import annotations

from plurum.benchmarks.claims.cascades.simulation import cascades
from plurum.benchmarks.tools import command

command.run_as_program(cascades)
