"""Plurum: out of many image classifiers, one calibrated answer, and how far to trust it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
