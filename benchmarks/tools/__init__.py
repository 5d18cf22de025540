"""Load, members, machines and servers that the benchmarks share."""
