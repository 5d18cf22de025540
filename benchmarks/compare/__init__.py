"""Architectures compared by what they cost and what they add to a vote: `plurum compare`."""
