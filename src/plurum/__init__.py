"""Combine image classifiers into one calibrated prediction with an uncertainty estimate."""

__all__ = ["__version__"]

__version__ = "0.1.0"
