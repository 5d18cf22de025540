"""A script for each claim that the documentation makes."""
