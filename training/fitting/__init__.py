"""Fit the vote: weights, temperature, prediction sets and review threshold."""
