"""Calibrate a fitted vote on the labelled images of a site."""
