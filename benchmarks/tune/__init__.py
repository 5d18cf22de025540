"""The search for the fastest repository that serves the same predictions: `plurum tune`."""
