"""Checks of the structure of JPEG, PNG and TIFF files before decoding."""
