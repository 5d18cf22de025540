"""The main job on real images: `plurum demo`."""
