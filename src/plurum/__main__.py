"""`python -m plurum` is `plurum`."""

from plurum.cli.main import run

run()
