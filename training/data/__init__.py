"""Labelled images: read, checked, split and stored."""
