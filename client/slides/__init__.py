"""Predictions for slides: images that are too large to send whole."""
