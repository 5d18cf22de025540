"""Training of the members."""
