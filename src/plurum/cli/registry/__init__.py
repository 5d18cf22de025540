"""`plurum push` and `plurum pull`: store a model repository in a registry, and fetch it."""
