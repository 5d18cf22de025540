"""Evaluation of a fitted ensemble, and its report."""
