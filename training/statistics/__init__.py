"""Compute metrics, calibration, intervals and the results of an evaluation."""
