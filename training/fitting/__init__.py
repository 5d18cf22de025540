"""Fitting of the vote: weights, temperature, prediction sets and review threshold."""
