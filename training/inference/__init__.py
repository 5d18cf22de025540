"""Compute predictions of trained members."""
