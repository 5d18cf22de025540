"""Predictions for images that are too large to send whole."""
