"""Claims about a served cascade."""
