"""Load tests of one served ensemble: `plurum bench`."""
