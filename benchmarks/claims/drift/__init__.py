"""Alarms of the test for drift on samples with and without a shift."""
