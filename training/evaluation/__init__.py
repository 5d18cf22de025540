"""Evaluate a fitted ensemble, and write the report."""
