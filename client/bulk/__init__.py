"""Many images at once: `plurum predict`, its journal and its files."""
