"""`plurum demo`: an end-to-end run on real images."""
