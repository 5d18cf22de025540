"""Predictions of a served ensemble: the table of its outputs, their tensors, and the type that clients get."""
