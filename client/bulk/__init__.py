"""Predictions for many images: listings, journal and output files of `plurum predict`."""
