"""`plurum distill`: train a student that imitates the vote of a run."""
