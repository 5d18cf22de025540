"""Promises on new patients: statistical tests that training and export share."""
