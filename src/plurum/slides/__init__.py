"""Slides: images too large to decode whole."""
