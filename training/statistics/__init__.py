"""Metrics, calibration, intervals and the values that an evaluation states."""
