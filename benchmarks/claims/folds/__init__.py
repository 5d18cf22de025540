"""Compare cross-validation members with members of one split, and simulate the coverage of their sets."""
